// SPDX-License-Identifier: GPL-2.0
//! The demonstration on one file system.
//!
//! The program keeps what the file must contain in memory of its own, and compares with that. Before
//! every look it makes sure, by the page table, that what it is going to see is only in VRAM.

use crate::report::Report;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Direction;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::gpu::Work;
use devcache_selftests::map::Map;
use devcache_selftests::model::add_u32;
use devcache_selftests::model::Checksum;
use devcache_selftests::mount::FileSystem;
use devcache_selftests::mount::Mount;
use devcache_selftests::pagemap;
use devcache_selftests::pagemap::Place;
use devcache_selftests::random::Random;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use std::fs;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Pieces in which the file is written, read and compared.
const PIECE: usize = 1 << 20;

/// What the GPU adds to every element, one time and the other.
const FIRST: u32 = 0x0102_0304;
const SECOND: u32 = 1_000_003;

/// The file, and what it must contain.
struct Demo<'a> {
    gpu: &'a Gpu,
    report: Report<'a>,
    file: File,
    map: Map,
    want: Vec<u8>,
}

/// Makes the file, shows everything, and removes it.
pub(crate) fn on_file_system(gpu: &Gpu, fs: &FileSystem, len: usize) -> Result<()> {
    let mount = fs.mount()?;
    let path = fs.dir.join("devcache-demo");
    let place = match mount.on_disk() {
        true => format!("on {}", mount.source),
        false => "in memory only".to_owned(),
    };
    let title = format!("{}: a file of {} MiB {place}", fs.kind, len >> 20);
    show(Demo::new(gpu, &path, len, &title)?, &mount, &path).with_context(|| fs.kind.clone())?;
    fs::remove_file(&path)?;
    Ok(())
}

/// Shows everything there is to show.
fn show(mut demo: Demo<'_>, mount: &Mount, path: &Path) -> Result<()> {
    demo.checksums()?;
    demo.add(FIRST)?;
    demo.write_into_the_middle()?;
    demo.look()?;
    demo.move_to_vram()?;
    demo.add(SECOND)?;
    demo.reach_the_disk(mount, path)
}

impl<'a> Demo<'a> {
    fn new(gpu: &'a Gpu, path: &Path, len: usize, title: &str) -> Result<Self> {
        let mut report = Report::new(gpu, title)?;
        let want = Random::unpredictable()?.bytes(len);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        for (number, piece) in want.chunks(PIECE).enumerate() {
            file.write_all_at(piece, (number * PIECE) as u64)?;
        }
        let map = Map::shared(&file, len)?;
        report.step(&format!(
            "wrote random contents and mapped it MAP_SHARED at {:#x}",
            map.addr()
        ));
        Ok(Demo {
            gpu,
            report,
            file,
            map,
            want,
        })
    }

    /// All pages of the file.
    fn pages(&self) -> Range<usize> {
        0..self.map.pages()
    }

    /// The whole file as an array.
    fn elements(&self) -> usize {
        self.map.len() / 4
    }

    /// These pages must be in VRAM, and nowhere else.
    fn in_vram(&self, pages: Range<usize>) -> Result<()> {
        let elsewhere = pagemap::elsewhere(&self.map, pages, Place::Device)?.len();
        ensure!(elsewhere == 0, "{elsewhere} pages are not in VRAM");
        Ok(())
    }

    /// Moves all pages to VRAM.
    fn move_to_vram(&mut self) -> Result<()> {
        // A store that changes nothing: the file system knows then that the pages will be written, and
        // the GPU can do so where they are.
        self.map.touch_write(self.pages())?;
        self.report.step("touched every page");

        let counts = self
            .gpu
            .migrate(&self.map, self.pages(), Direction::ToVram)?;
        self.report.step(&format!(
            "moved to VRAM: the kernel says {} pages moved, {} were there, {} skipped, of {}",
            counts.moved,
            counts.present,
            counts.skipped,
            self.map.pages()
        ));
        ensure!(
            counts.skipped == 0,
            "{} pages could not be moved to VRAM",
            counts.skipped
        );
        self.in_vram(self.pages())
    }

    /// The CPU's checksum, over read(2), and the GPU's, over the mapping.
    fn checksums(&mut self) -> Result<()> {
        let mut sum = Checksum::default();
        let mut piece = vec![0; PIECE];
        for start in (0..self.want.len()).step_by(PIECE) {
            self.file.read_exact_at(&mut piece, start as u64)?;
            sum.update(&piece);
        }
        let by_cpu = sum.value();
        self.report
            .step(&format!("checksum by the CPU over read(2): {by_cpu:016x}"));

        self.move_to_vram()?;
        let by_gpu = self.gpu.compute(Work::Checksum {
            src: self.map.addr(),
            count: self.elements(),
        })?;
        self.report.step(&format!(
            "checksum by the GPU over the mapping: {by_gpu:016x}"
        ));
        ensure!(by_cpu == by_gpu, "the checksums differ");
        self.in_vram(self.pages())
    }

    /// The GPU adds to every element, in VRAM.
    fn add(&mut self, value: u32) -> Result<()> {
        self.gpu.compute(Work::Add {
            dst: self.map.addr(),
            count: self.elements(),
            value,
        })?;
        self.report.step(&format!(
            "the GPU added {value} to each of {} elements",
            self.elements()
        ));
        add_u32(&mut self.want, value);
        self.in_vram(self.pages())
    }

    /// write(2) of 4 KiB at an odd offset, into two pages that are in VRAM: what it does not cover keeps
    /// what the GPU wrote.
    fn write_into_the_middle(&mut self) -> Result<()> {
        let page = self.map.pages() / 2;
        let text = Random::unpredictable()?.bytes(PAGE);
        let at = page * PAGE + 1357;
        let pages = page * PAGE..(page + 2) * PAGE;
        let before = self.report.pages_back()?;

        self.in_vram(page..page + 2)?;
        self.file.write_all_at(&text, at as u64)?;
        self.want[at..at + PAGE].copy_from_slice(&text);
        let mut got = vec![0; pages.len()];
        self.file.read_exact_at(&mut got, pages.start as u64)?;
        ensure!(
            got == self.want[pages],
            "write(2) into pages in VRAM did not merge"
        );
        self.report.step(&format!(
            "write(2) of {PAGE} bytes into pages {page} and {} merged with the GPU's data; {} pages came \
             back for it",
            page + 1,
            self.report.pages_back()? - before
        ));
        Ok(())
    }

    /// What the GPU wrote shows in mmap reads, in the first half, and in pread, in the second.
    fn look(&mut self) -> Result<()> {
        let half = self.map.pages() / 2;
        let middle = half * PAGE;
        let before = self.report.pages_back()?;

        self.in_vram(0..half)?;
        for start in (0..middle).step_by(PIECE) {
            let piece = start..(start + PIECE).min(middle);
            ensure!(
                self.map.read(piece.clone()) == self.want[piece],
                "the mapping shows something else than the GPU wrote"
            );
        }
        let by_map = self.report.pages_back()? - before;
        self.report.step(&format!(
            "mmap reads of the first half show the new values; {by_map} pages came back for it"
        ));

        self.in_vram(half + 2..self.map.pages())?;
        self.file_is_right(middle)?;
        let by_read = self.report.pages_back()? - before - by_map;
        self.report.step(&format!(
            "pread of the second half shows the new values; {by_read} pages came back for it"
        ));
        Ok(())
    }

    /// What read(2) gives from `start` on is right.
    fn file_is_right(&self, start: usize) -> Result<()> {
        let mut got = vec![0; PIECE];
        for start in (start..self.want.len()).step_by(PIECE) {
            let len = PIECE.min(self.want.len() - start);
            self.file.read_exact_at(&mut got[..len], start as u64)?;
            ensure!(
                got[..len] == self.want[start..start + len],
                "read(2) shows something else than the GPU wrote"
            );
        }
        Ok(())
    }

    /// What is only in VRAM reaches the disk by fsync(2), and is there after mounting again.
    ///
    /// A file system without a disk has to show it when its caches are dropped, which it must not be.
    fn reach_the_disk(mut self, mount: &Mount, path: &Path) -> Result<()> {
        let before = self.report.pages_back()?;
        self.in_vram(self.pages())?;
        self.file.sync_all()?;
        self.report.step(&format!(
            "fsync: {} pages came back for it",
            self.report.pages_back()? - before
        ));

        drop(std::mem::replace(&mut self.map, Map::anonymous(PAGE)?));
        let how = if mount.on_disk() {
            self.file = File::open("/dev/null")?;
            mount.unmount()?;
            sys::drop_caches()?;
            mount.mount()?;
            self.file = File::open(path)?;
            "unmounted, dropped all caches, mounted: the disk"
        } else {
            sys::drop_caches()?;
            "unmapped, dropped all caches: the file"
        };
        self.file_is_right(0)?;
        self.report.step(&format!("{how} has what the GPU wrote"));
        self.report.numbers()
    }
}
