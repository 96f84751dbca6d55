// SPDX-License-Identifier: GPL-2.0

//! How pages become reachable for the GPU.
//!
//! The GPU faults on a page. Serving that page is a duty; serving others of the same array in one go is
//! a wish, since a fault of its own for each would be slow. So the others are asked for first, and for
//! a while only, and then the one that matters. What is there in the end is looked at without causing
//! faults, and mapped.
//!
//! Pages are not made writable as one range, of which all have to be writable at the same time: a file
//! system that is close to a quota writes all dirty pages to disk to find room for one more. That makes
//! those read-only that had been asked for before, and so on without end.

use core::ops::Range;
use kernel::{
    mm::{
        hmm::{
            self,
            Access,
            Location,
            Pages,
            Pfn,
            Request, //
        },
        pagemap_owner::PagemapOwner,
        MmWithUser, //
    },
    num::casts::{
        self,
        arch::IntoSafeCastArch, //
    },
    page::PAGE_SIZE,
    prelude::*,
    time::{
        msecs_to_jiffies,
        Delta,
        Instant,
        Monotonic,
        Msecs, //
    }, //
};

use crate::{
    hw,
    job::Job,
    migrate,
    page_table::{
        PageTable,
        Target, //
    },
    range,
    svm::{
        Scratch,
        Svm, //
    }, //
};

/// How long to try to see the page table of the process at rest.
const HMM_TIMEOUT: Msecs = 1000;

/// How often to try to map pages that are gone again before they are mapped.
const ROUNDS: usize = 100;

/// How long to go on making pages writable.
const WRITABLE_TIME: Delta = Delta::from_millis(500);

/// Returns addresses of the GPU as those of the process, which they are.
fn span(addresses: &Range<u64>) -> Range<usize> {
    addresses.start.into_safe_cast_arch()..addresses.end.into_safe_cast_arch()
}

/// Returns what to ask for on behalf of a GPU that writes, or only reads.
fn access_for(write: bool) -> Access {
    if write {
        Access::Write
    } else {
        Access::Read
    }
}

/// What [`Svm::map_present`] has found.
#[derive(Default)]
struct Found {
    /// How many pages the GPU can use now.
    usable: usize,
    /// The page that matters is one of them.
    reached: bool,
    /// Where pages are in VRAM that are to be written to, and may not be.
    read_only: Option<Range<usize>>,
}

impl<'bound> Svm<'bound> {
    /// Makes the page at `va` reachable for the GPU after it faulted there, and while at it others
    /// that `job` is going to access.
    ///
    /// Context: process context, sleeps, with no locks held.
    ///
    /// # Errors
    ///
    /// - `EFAULT`: the process may not access the page in this way.
    /// - `ECANCELED`: the process exits, or the file is being closed.
    /// - others: the page could not be made reachable.
    pub(crate) fn fault(
        &self,
        va: u64,
        access: hw::Access,
        job: Option<&Job>,
        scratch: &mut Scratch<'bound>,
    ) -> Result {
        let mm = self.notifier.mm().mmget_not_zero().ok_or(ECANCELED)?;
        // Should this be the last user of the address space, its end must not be our job.
        let mm = MmWithUser::into_mmput_async(mm);

        // A file system that allocates blocks asks who wants them: quota, and blocks kept for root. The
        // page cache asks whose memory it is.
        let as_owner = || self.fault_as_owner(&mm, va, access, job, scratch);
        self.cred.with(|| mm.charge(as_owner))
    }

    /// The part of [`Svm::fault`] that is done as if the program did it.
    fn fault_as_owner(
        &self,
        mm: &MmWithUser,
        va: u64,
        access: hw::Access,
        job: Option<&Job>,
        scratch: &mut Scratch<'bound>,
    ) -> Result {
        let write = access == hw::Access::Write;
        let page = va..va + hw::PAGE_SIZE;
        if let Some((array, writes)) = job.and_then(|job| job.access(va)) {
            let around = range::around(va, &array);
            let write = write || writes;
            if job.is_some_and(Job::wants_vram) {
                let addresses = span(&around);
                // It is a wish: what cannot be moved is used where it is.
                let _ = migrate::bring_in(self, mm, addresses, access_for(write), scratch);
            }
            if self.make_reachable(mm, va, around, write, scratch).is_ok() {
                return Ok(());
            }
        }
        // Perhaps it may be read, and the job is going to write to others only.
        match self.make_reachable(mm, va, page, write, scratch) {
            Err(error) if error == EPERM => Err(EFAULT),
            Err(error) if error == ESRCH => Err(ECANCELED),
            result => result,
        }
    }

    /// Maps the page at `va`, and what can be had of the others in `addresses`, all of which lie in the
    /// leaf table for `va`.
    fn make_reachable(
        &self,
        mm: &MmWithUser,
        va: u64,
        addresses: Range<u64>,
        write: bool,
        scratch: &mut Scratch<'bound>,
    ) -> Result {
        let addresses = span(&addresses);
        let page = span(&(va..va + hw::PAGE_SIZE));
        let owner = Some(self.units.memory.pagemap().owner());
        let access = access_for(write);
        let mut asked = false;
        let mut moved = false;

        for _ in 0..ROUNDS {
            let found = self.map_present(mm, va, &addresses, write, scratch)?;
            if found.reached && (asked || found.usable == addresses.len() / PAGE_SIZE) {
                return Ok(());
            }
            if let Some(read_only) = found.read_only {
                self.make_writable(mm, read_only, !moved, scratch)?;
                moved = true;
            }
            if addresses != page {
                // What cannot be had is no concern of this fault.
                let _ = self.touch(mm, addresses.clone(), access, owner, scratch);
            }
            match self.touch(mm, page.clone(), access, owner, scratch) {
                Err(EBUSY) => continue,
                result => result?,
            }
            asked = true;
        }
        Err(EBUSY)
    }

    /// Maps the pages in `addresses` that are present in the page table of the process. Leaves the
    /// indices of those that are in VRAM, and may not be written to in spite of `write`, in
    /// `Scratch::indices`.
    fn map_present(
        &self,
        mm: &MmWithUser,
        va: u64,
        addresses: &Range<usize>,
        write: bool,
        scratch: &mut Scratch<'bound>,
    ) -> Result<Found> {
        self.fill_reserve(scratch)?;
        let memory = &self.units.memory;
        let mut found = Found::default();
        let Scratch {
            pfns,
            indices,
            reserve,
            ..
        } = &mut *scratch;
        indices.clear();
        let map = |table: &mut PageTable<'bound>, pages: Pages<'_>| {
            let targets = pages.filter_map(|page| {
                let address = page.address();
                let target = match page.location() {
                    Location::Device(folio) if write && !page.is_writable() => {
                        let first = found
                            .read_only
                            .as_ref()
                            .map_or(address, |range| range.start);
                        found.read_only = Some(first..address + PAGE_SIZE);
                        if let Some(index) = memory.pagemap().index_of(folio) {
                            // There is room for as many as there are pages.
                            let _ = indices.push_within_capacity(index);
                        }
                        return None;
                    }
                    Location::Device(folio) => {
                        memory.mark_used(folio);
                        (Target::Vram(memory.offset_of(folio)?), page.is_writable())
                    }
                    Location::System(_) if write && !page.is_writable() => return None,
                    Location::System(system) => {
                        if write {
                            system.mark_dirty();
                        }
                        (Target::System(system), write)
                    }
                };
                let address = casts::usize_as_u64(address);
                found.usable += 1;
                found.reached |= address == va;
                Some((address, target.0, target.1))
            });
            table.map(va, targets, reserve)
        };
        let owner = Some(memory.pagemap().owner());
        let mapped = self.see(mm, addresses.clone(), Access::None, owner, pfns, map)??;
        self.units.stats.pages_mapped.add(mapped);
        self.stats.pages_mapped.add(mapped);
        Ok(found)
    }

    /// Has the process's page table refer to pages in such a way that `access` is possible, as
    /// [`hmm::fault`] does. If they are to be written to, that is done one by one, up to the first that
    /// cannot be had, and for [`WRITABLE_TIME`].
    ///
    /// Context: process context, sleeps, with no locks held.
    ///
    /// # Errors
    ///
    /// As [`hmm::fault`].
    pub(crate) fn touch(
        &self,
        mm: &MmWithUser,
        addresses: Range<usize>,
        access: Access,
        owner: Option<PagemapOwner>,
        scratch: &mut Scratch<'bound>,
    ) -> Result {
        let step = match access {
            Access::Write => PAGE_SIZE,
            _ => addresses.len().max(PAGE_SIZE),
        };
        let begin = Instant::<Monotonic>::now();
        for start in addresses.step_by(step) {
            if begin.elapsed() > WRITABLE_TIME {
                break;
            }
            self.see(
                mm,
                start..start + step,
                access,
                owner,
                &mut scratch.pfns,
                |_, _| (),
            )?;
        }
        Ok(())
    }

    /// Calls [`hmm::fault`] with the notifier of the address space, and part of `pfns`.
    ///
    /// Context: process context, sleeps, with no locks held.
    ///
    /// # Errors
    ///
    /// As [`hmm::fault`].
    pub(crate) fn see<R>(
        &self,
        mm: &MmWithUser,
        addresses: Range<usize>,
        access: Access,
        owner: Option<PagemapOwner>,
        pfns: &mut [Pfn],
        with: impl FnOnce(&mut PageTable<'bound>, Pages<'_>) -> R,
    ) -> Result<R> {
        let pfns = pfns.get_mut(..addresses.len() / PAGE_SIZE).ok_or(EINVAL)?;
        let request = Request {
            mm,
            addresses,
            access,
            owner,
            timeout: msecs_to_jiffies(HMM_TIMEOUT),
        };
        hmm::fault(&self.notifier, request, pfns, with)
    }

    /// Makes pages that are in VRAM writable.
    ///
    /// Only a write fault of the CPU can do that, and it needs them in system memory. So those of
    /// `Scratch::indices` come back, and move again, if `move_again` is set.
    fn make_writable(
        &self,
        mm: &MmWithUser,
        addresses: Range<usize>,
        move_again: bool,
        scratch: &mut Scratch<'bound>,
    ) -> Result {
        // What stays will come back when it is touched.
        let _ = self.units.memory.send_back(&scratch.indices);
        if move_again {
            return migrate::bring_in(self, mm, addresses, Access::Write, scratch);
        }
        // What cannot be had will be missing.
        let _ = self.touch(mm, addresses, Access::Write, None, scratch);
        Ok(())
    }

    /// Fills the reserve of page tables. If there is no VRAM for them, all tables of this address
    /// space are given back: what the GPU still needs is mapped again when it faults.
    fn fill_reserve(&self, scratch: &mut Scratch<'bound>) -> Result {
        let Scratch { reserve, .. } = scratch;
        match reserve.fill(&self.units.mmu) {
            Err(error) if error == ENOSPC => {
                self.notifier.update_lock().lock().clear();
                reserve.fill(&self.units.mmu)
            }
            result => result,
        }
    }
}
