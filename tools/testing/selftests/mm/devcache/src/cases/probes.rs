// SPDX-License-Identifier: GPL-2.0
//! Those who look into the pages of executables where they must not wait: uprobes, and readers of build
//! IDs. They leave a device page where it is.

use crate::case::skip;
use crate::case::Case;
use crate::case::Ctx;
use crate::check::same;
use crate::check::same_bytes;
use crate::resident::Resident;
use crate::resident::Touch;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::map::Map;
use devcache_selftests::pagemap;
use devcache_selftests::pagemap::Place;
use devcache_selftests::perf::Mappings;
use devcache_selftests::sys;
use devcache_selftests::PAGE;
use nix::errno::Errno;
use nix::mount::mount;
use nix::mount::MsFlags;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(crate) const CASES: &[Case] = &[
    Case::every("uprobe_on_device_page", uprobe_on_device_page),
    Case::every("uprobe_removed_over_device_page", uprobe_removed),
    Case::every("build_id_on_device", build_id_on_device),
];

const TRACING: &str = "/sys/kernel/tracing";

/// A probe in a file, enabled until dropped.
struct Probe(String);

impl Probe {
    /// Puts one on the instruction at `offset`.
    fn set(path: &Path, offset: usize) -> Result<Self> {
        match mount(
            Some("tracefs"),
            TRACING,
            Some("tracefs"),
            MsFlags::empty(),
            None::<&str>,
        ) {
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(_) => return skip("this kernel has no uprobes"),
        }
        let name = format!("devcache{}", std::process::id());
        Self::command(&format!("p:{name} {}:{offset:#x}", path.display()))?;
        let probe = Probe(name);
        probe.enable("1")?;
        Ok(probe)
    }

    fn command(text: &str) -> Result<()> {
        let mut file = OpenOptions::new()
            .append(true)
            .open(format!("{TRACING}/uprobe_events"))?;
        file.write_all(text.as_bytes())
            .with_context(|| format!("uprobe_events: {text}"))
    }

    fn enable(&self, text: &str) -> Result<()> {
        let path = format!("{TRACING}/events/uprobes/{}/enable", self.0);
        fs::write(&path, text).with_context(|| path)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.enable("0");
        let _ = Self::command(&format!("-:{}", self.0));
    }
}

/// `nop; ret`: a function, for a probe to be put on.
#[cfg(target_arch = "x86_64")]
const CODE: Option<[u8; 2]> = Some([0x90, 0xc3]);
#[cfg(not(target_arch = "x86_64"))]
const CODE: Option<[u8; 2]> = None;

/// The breakpoint that the kernel puts in place of the first byte.
const BREAKPOINT: u8 = 0xcc;

/// A file with code at the start of its second page, and a mapping as that of an executable.
fn executable(ctx: &Ctx) -> Result<(Resident<'_>, Map)> {
    let Some(code) = CODE else {
        return skip("the test has no code for this kind of processor");
    };
    let mut file = Resident::in_ram(ctx, 4)?;
    file.pwrite(PAGE, &code)?;
    let text = Map::of_file(
        &File::open(&file.path)?,
        4 * PAGE,
        ProtFlags::PROT_READ | ProtFlags::PROT_EXEC,
        MapFlags::MAP_PRIVATE,
    )?;
    Ok((file, text))
}

/// Setting a probe reads the instruction, which brings its page back; the mapping gets a copy with a
/// breakpoint and the file stays as it is.
fn uprobe_on_device_page(ctx: &Ctx) -> Result<()> {
    let (file, text) = executable(ctx)?;

    file.send(0..4, Touch::Write)?;
    let probe = Probe::set(&file.path, PAGE)?;
    same("instruction", text.read(PAGE..PAGE + 1)[0], BREAKPOINT)?;
    same_bytes(
        "what follows it",
        &text.read(PAGE + 1..2 * PAGE),
        &file.want[PAGE + 1..2 * PAGE],
    )?;
    file.is_right()?;
    drop(probe);
    same_bytes("mapping", &text.read_all(), &file.want)
}

/// Removing a probe compares the mapping's copy with the file's page, under a page table lock, and gives
/// the copy up if they are the same (`orig_page_is_identical`). A page on the device is not looked at: it
/// stays there, and the mapping keeps its copy, which is right.
fn uprobe_removed(ctx: &Ctx) -> Result<()> {
    let (file, text) = executable(ctx)?;
    let mem = File::open("/proc/self/mem")?;
    let set_probe = || {
        let probe = Probe::set(&file.path, PAGE)?;
        // A copy that is on its way to the LRU, or there to the active pages, is not given up.
        for _ in 0..2 {
            mem.read_exact_at(&mut [0], text.page_addr(1) as u64)?;
            sys::empty_lru_batches()?;
        }
        anyhow::Ok(probe)
    };
    let copy = || pagemap::places(&text, 1..2);

    // Nor is one that anybody else looks at right then.
    for attempt in 1.. {
        drop(set_probe()?);
        if copy()? == [Place::None] {
            break;
        }
        ensure!(attempt < 20, "the mapping's copy is never given up");
    }
    let probe = set_probe()?;
    file.send(0..4, Touch::Write)?;
    drop(probe);
    same("the mapping's copy", copy()?, vec![Place::Ram])?;
    file.on_device(0..4)?;
    same_bytes("mapping", &text.read_all(), &file.want)?;
    file.is_right()
}

const BUILD_ID: [u8; 20] = *b"devcache's build ID.";

/// An ELF file of which only what leads to the build ID is there: a header, one program header, a note.
fn elf() -> Vec<u8> {
    const HEADER: u16 = 64;
    const PROGRAM_HEADER: u16 = 56;
    const NOTE: u64 = 16 + BUILD_ID.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];

    elf.resize(16, 0);
    // Type: executable; machine: x86-64, which nobody looks at here; version.
    elf.extend([2_u16, 62, 1, 0].iter().flat_map(|half| half.to_ne_bytes()));
    // Entry, program headers, section headers.
    elf.extend(
        [0, u64::from(HEADER), 0]
            .iter()
            .flat_map(|word| word.to_ne_bytes()),
    );
    elf.extend(
        [0_u16, 0, HEADER, PROGRAM_HEADER, 1, 0, 0, 0]
            .iter()
            .flat_map(|half| half.to_ne_bytes()),
    );
    // PT_NOTE, readable.
    elf.extend([4_u32, 4].iter().flat_map(|word| word.to_ne_bytes()));
    let offset = u64::from(HEADER + PROGRAM_HEADER);
    elf.extend(
        [offset, offset, offset, NOTE, NOTE, 4]
            .iter()
            .flat_map(|word| word.to_ne_bytes()),
    );
    // NT_GNU_BUILD_ID
    elf.extend(
        [4, BUILD_ID.len() as u32, 3]
            .iter()
            .flat_map(|word| word.to_ne_bytes()),
    );
    elf.extend(b"GNU\0");
    elf.extend(BUILD_ID);
    elf
}

/// perf asks for the build ID of every new executable mapping and takes no for an answer: a device page
/// is not brought back for it (`freader_get_folio`). From RAM it gets it.
fn build_id_on_device(ctx: &Ctx) -> Result<()> {
    let mut file = Resident::in_ram(ctx, 4)?;
    file.pwrite(0, &elf())?;
    file.send(0..4, Touch::Write)?;
    let Ok(mut mappings) = Mappings::watch() else {
        return skip("this kernel has no perf events");
    };
    let executable = || {
        Map::of_file(
            &File::open(&file.path)?,
            4 * PAGE,
            ProtFlags::PROT_READ | ProtFlags::PROT_EXEC,
            MapFlags::MAP_PRIVATE,
        )
        .map_err(anyhow::Error::from)
    };

    let map = executable()?;
    same(
        "from the device",
        mappings.build_ids(map.addr()),
        vec![None],
    )?;
    file.on_device(0..4)?;
    file.is_right()?;
    let map = executable()?;
    same(
        "from memory",
        mappings.build_ids(map.addr()),
        vec![Some(BUILD_ID.to_vec())],
    )
}
