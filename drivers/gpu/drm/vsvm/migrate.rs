// SPDX-License-Identifier: GPL-2.0

//! Moving the pages of a range on behalf of a program.
//!
//! A range is worked through in batches. A page that cannot be moved is not an error, but counted;
//! see `struct drm_vsvm_migrate`. Where pages are is always looked up in the page table of the
//! process, before and after, so the counts say what happened and not what was tried.

use core::ops::Range;
use kernel::{
    fs::File,
    mm::{
        hmm::{
            Access,
            Location,
            Pages, //
        },
        mapping::Mapping,
        pagemap_owner::PagemapOwner,
        virt::{
            flags,
            VmaRef, //
        },
        vma_walk::Span,
        MmWithUser, //
    },
    num::casts,
    page::PAGE_SIZE,
    prelude::*,
    sync::aref::ARef, //
};

use crate::{
    copy::BATCH,
    svm::{
        Scratch,
        Svm, //
    }, //
};

/// How often to try to move a batch. A page that was just touched may be in use for a moment.
const ATTEMPTS: usize = 2;

/// Where pages are to go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To VRAM.
    ToVram,
    /// To system memory.
    ToRam,
}

/// What became of the pages of a range.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) moved: u64,
    pub(crate) present: u64,
    pub(crate) skipped: u64,
}

/// Moves the pages in `addresses`, and counts them in `counts`, also if it fails.
///
/// Context: process context, sleeps, with no locks held.
///
/// # Errors
///
/// As documented for `struct drm_vsvm_migrate`.
pub(crate) fn migrate(
    svm: &Svm<'_>,
    mm: &MmWithUser,
    addresses: Range<usize>,
    direction: Direction,
    counts: &mut Counts,
) -> Result {
    check(mm, &addresses)?;
    let mut scratch = Scratch::new()?;

    let mut start = addresses.start;
    while start < addresses.end {
        if current!().fatal_signal_pending() {
            return Err(EINTR);
        }
        let end = addresses.end.min(start + BATCH * PAGE_SIZE);
        let mut batch = Batch {
            svm,
            mm,
            addresses: start..end,
            scratch: &mut scratch,
        };
        batch.migrate(direction, counts)?;
        start = end;
    }
    Ok(())
}

/// Moves the pages in `addresses`, at most [`BATCH`], to VRAM, where they can be accessed as `access`
/// says. Those that cannot be moved stay.
///
/// Context: process context, sleeps, with no locks held.
///
/// # Errors
///
/// `ENOMEM`, `EINTR`, `EBUSY`: as for [`migrate`].
pub(crate) fn bring_in<'bound>(
    svm: &Svm<'bound>,
    mm: &MmWithUser,
    addresses: Range<usize>,
    access: Access,
    scratch: &mut Scratch<'bound>,
) -> Result {
    let mut batch = Batch {
        svm,
        mm,
        addresses,
        scratch,
    };
    let resident = batch.resident()?;
    batch.move_in(resident, access)
}

/// Checks that all of a range is mapped by areas whose pages can move.
fn check(mm: &MmWithUser, addresses: &Range<usize>) -> Result {
    let mmap = mm.mmap_read_lock();
    for span in mmap.spans(addresses.clone()) {
        match span {
            Span::Unmapped { .. } => return Err(ENOMEM),
            Span::Mapped { vma, .. } if !is_accessible(vma) => return Err(EACCES),
            Span::Mapped { vma, .. } if !vma.is_migratable() => return Err(EOPNOTSUPP),
            Span::Mapped { .. } => (),
        }
    }
    Ok(())
}

fn is_accessible(vma: &VmaRef) -> bool {
    vma.flags() & (flags::READ | flags::WRITE | flags::EXEC) != 0
}

/// Up to [`BATCH`] pages.
struct Batch<'a, 'bound> {
    svm: &'a Svm<'bound>,
    mm: &'a MmWithUser,
    addresses: Range<usize>,
    scratch: &'a mut Scratch<'bound>,
}

impl Batch<'_, '_> {
    fn pages(&self) -> usize {
        self.addresses.len() / PAGE_SIZE
    }

    fn migrate(&mut self, direction: Direction, counts: &mut Counts) -> Result {
        let before = self.resident()?;
        let result = match direction {
            Direction::ToVram => self.move_in(before, Access::Read),
            Direction::ToRam => self.move_back(),
        };
        let after = self.resident()?;

        let (present, moved, skipped) = match direction {
            Direction::ToVram => {
                let moved = after.saturating_sub(before);
                (before, moved, self.pages() - before - moved)
            }
            Direction::ToRam => {
                let moved = before.saturating_sub(after);
                (self.pages() - before, moved, before - moved)
            }
        };
        counts.present += casts::usize_as_u64(present);
        counts.moved += casts::usize_as_u64(moved);
        counts.skipped += casts::usize_as_u64(skipped);
        result
    }

    /// Looks at a part of the page table of the process, as a device does, without using it.
    ///
    /// Pages that cannot be had are not an error.
    fn touch(
        &mut self,
        addresses: Range<usize>,
        access: Access,
        owner: Option<PagemapOwner>,
    ) -> Result {
        let touched = self
            .svm
            .touch(self.mm, addresses, access, owner, self.scratch);
        match touched {
            Err(error) if error == ENOMEM || error == EINTR => Err(error),
            _ => Ok(()),
        }
    }

    /// Finds out which pages are in VRAM: leaves their indices there in `Scratch::indices`, and
    /// returns how many they are.
    fn resident(&mut self) -> Result<usize> {
        let memory = &self.svm.units.memory;
        let Scratch { pfns, indices, .. } = &mut *self.scratch;
        let look = |_: &mut _, pages: Pages<'_>| -> Result<usize> {
            indices.clear();
            for page in pages {
                if let Location::Device(folio) = page.location() {
                    memory.mark_used(folio);
                    let index = memory.pagemap().index_of(folio).ok_or(EINVAL)?;
                    let pushed = indices.push_within_capacity(index);
                    pushed.map_err(|_| EINVAL)?;
                }
            }
            Ok(indices.len())
        };
        let owner = Some(memory.pagemap().owner());
        let addresses = self.addresses.clone();
        self.svm
            .see(self.mm, addresses, Access::None, owner, pfns, look)?
    }

    /// Moves pages to VRAM, `resident` of which are there already. If the GPU is going to write to
    /// them, the file systems of files are asked first, for in VRAM it would be too late.
    fn move_in(&mut self, mut resident: usize, access: Access) -> Result {
        let memory = self.svm.units.memory.clone();
        for _ in 0..ATTEMPTS {
            if resident >= self.pages() {
                break;
            }
            memory.make_room(self.pages() - resident);
            self.prepare_files(memory.pagemap().owner(), access)?;

            let mmap = self.mm.mmap_read_lock();
            for span in mmap.spans(self.addresses.clone()) {
                if let Span::Mapped { addresses, .. } = span {
                    let taken = memory
                        .take_in(&mmap, addresses, &mut self.scratch.buffer)
                        .unwrap_or(0);
                    self.svm.stats.pages_in.add(taken);
                    resident += taken;
                }
            }
        }
        Ok(())
    }

    /// Makes the pages of files small and present, since only those move.
    fn prepare_files(&mut self, owner: PagemapOwner, access: Access) -> Result {
        let mut start = self.addresses.start;
        while let Some((addresses, file, pages)) = self.next_file(start) {
            start = addresses.end;
            match Mapping::of_file(&file).prepare_for_device(pages) {
                // Pages of this file never move, which the counts will say.
                Err(EOPNOTSUPP) => continue,
                result => result?,
            }
            self.touch(addresses, access, Some(owner))?;
        }
        Ok(())
    }

    /// Returns the next part of the batch, at or after `start`, that belongs to a file, with the
    /// file and its pages.
    fn next_file(&self, start: usize) -> Option<(Range<usize>, ARef<File>, Range<usize>)> {
        let mmap = self.mm.mmap_read_lock();
        let mut spans = mmap.spans(start..self.addresses.end);
        spans.find_map(|span| match span {
            Span::Mapped { vma, addresses } if !vma.is_anonymous() => {
                let (file, pages) = vma.file_pages(&addresses)?;
                Some((addresses, file, pages))
            }
            _ => None,
        })
    }

    fn move_back(&mut self) -> Result {
        self.resident()?;
        let memory = &self.svm.units.memory;
        memory.send_back(&self.scratch.indices)
    }
}
