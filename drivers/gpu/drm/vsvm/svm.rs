// SPDX-License-Identifier: GPL-2.0

//! Shared virtual memory: the GPU uses the addresses of a process.
//!
//! An [`Svm`] is the address space of one open file. Its page table follows that of the process:
//! pages are mapped when the GPU faults on them, and unmapped by an interval notifier when anything
//! happens to them. Nothing is mapped in advance, also not by a migration, so there is one way for
//! a page to become reachable ([`Svm::fault`]) and one way for it to cease to be
//! ([`Invalidate::invalidate`]).
//!
//! # Locks
//!
//! From the outside to the inside:
//!
//! 1. the mmap lock of the process; locks of files and folios;
//! 2. the update lock of `Svm::notifier`: no allocation, no copy, nothing of 1. inside;
//! 3. `Mmu::unit` and `Mmu::tables`, spinlocks.
//!
//! `CopyEngine::state` may be taken inside of 1., but not of 2. `Svm::scratch` is outside of all, and
//! held while a fault is served, for as long as that takes. `Svm::jobs` and `SvmTable::list` are outside
//! of `ComputeChannel::queue`, `SvmTable::list` also of 2.; nothing of 1. is taken inside of these three.
//!
//! # Faults
//!
//! Serving a fault waits for whoever provides the page: a disk, a frozen file system, a program that
//! uses userfaultfd. So each address space does it in work of its own, and none keeps others waiting.
//! Its engine executes one job at a time, so there is never more than one fault.

use core::ops::Range;
use kernel::{
    cred::Credential,
    device::{
        Bound,
        Device, //
    },
    mm::{
        hmm::{
            self,
            Access,
            Location,
            Pfn, //
        },
        interval_notifier::{
            IntervalNotifier,
            Invalidate,
            Invalidation, //
        },
        migrate_vma::MigrationBuffer,
        MmWithUser, //
    },
    new_mutex,
    num::casts::{
        self,
        arch::IntoSafeCastArch, //
    },
    page::PAGE_SIZE,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        aref::ARef,
        Arc,
        Mutex, //
    },
    time::{
        msecs_to_jiffies,
        Msecs, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        ScopedQueue,
        Work,
        WorkItem, //
    }, //
};

use crate::{
    compute::{
        ComputeChannel,
        ComputeUnit, //
    },
    copy::{
        CopyEngine,
        BATCH, //
    },
    dmem::DeviceMemory,
    hw::{
        self,
        reg,
        Fault, //
    },
    job::Job,
    migrate,
    mmu::Mmu,
    page_table::{
        PageTable,
        Reserve,
        Target, //
    },
    range,
    regs::Regs,
    stats::Stats, //
};

/// How long to try to see the page table of the process at rest.
pub(crate) const HMM_TIMEOUT: Msecs = 1000;

/// How often to look at pages again because they changed in the meantime.
const ROUNDS: usize = 100;

/// Jobs of one address space that nobody has waited for.
const JOBS_MAX: usize = 1024;

/// The page table of an address space is kept in step with that of the process.
impl Invalidate for PageTable<'_> {
    fn invalidate(&mut self, invalidation: &Invalidation<'_>) {
        let Range { start, end } = invalidation.addresses();
        self.unmap(casts::usize_as_u64(start)..casts::usize_as_u64(end));
    }
}

/// What the address spaces of a device share.
#[derive(Clone)]
pub(crate) struct Units<'bound> {
    pub(crate) dev: &'bound Device<Bound>,
    pub(crate) regs: Arc<Regs<'bound>>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) copy: Arc<CopyEngine<'bound>>,
    pub(crate) mmu: Arc<Mmu<'bound>>,
    pub(crate) memory: Arc<DeviceMemory<'bound>>,
    pub(crate) compute: Arc<ComputeUnit<'bound>>,
}

/// Memory for looking at pages and mapping them, allocated in advance.
pub(crate) struct Scratch<'bound> {
    pub(crate) pfns: KVec<Pfn>,
    pub(crate) buffer: MigrationBuffer,
    /// Indices of pages of VRAM.
    pub(crate) indices: KVec<usize>,
    reserve: Reserve<'bound>,
}

impl Scratch<'_> {
    /// Allocates enough for [`BATCH`] pages.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            pfns: KVec::from_elem(Pfn::NONE, BATCH, GFP_KERNEL)?,
            buffer: MigrationBuffer::new(BATCH, GFP_KERNEL)?,
            indices: KVec::with_capacity(BATCH, GFP_KERNEL)?,
            reserve: Reserve::new(),
        })
    }
}

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

/// Jobs by number.
struct Jobs {
    tree: RBTree<u64, Arc<Job>>,
    count: usize,
}

/// The GPU's address space of a process.
#[pin_data]
pub(crate) struct Svm<'bound> {
    /// Number of the address space; never used again.
    id: u64,
    root: u64,
    pub(crate) units: Units<'bound>,
    /// Those of the program that attached: its faults are served with them.
    cred: ARef<Credential>,
    /// Jobs that nobody has waited for.
    #[pin]
    jobs: Mutex<Jobs>,
    #[pin]
    pub(crate) channel: ComputeChannel<'bound>,
    /// The fault that is to be served.
    #[pin]
    pending: Mutex<Option<Fault>>,
    /// What serving it takes.
    #[pin]
    scratch: Mutex<Scratch<'bound>>,
    #[pin]
    work: Work<Self>,
    // Dropped when the channel has been stopped.
    #[pin]
    pub(crate) notifier: IntervalNotifier<PageTable<'bound>>,
}

impl_has_work! {
    impl{'bound} HasWork<Self> for Svm<'bound> { self.work }
}

impl WorkItem for Svm<'_> {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.serve();
    }
}

impl<'bound> Svm<'bound> {
    /// Creates the address space `id` for the process that has `mm`.
    pub(crate) fn new(id: u64, mm: &MmWithUser, units: Units<'bound>) -> Result<Arc<Self>> {
        let table = PageTable::new(units.dev, units.mmu.clone())?;
        let jobs = Jobs {
            tree: RBTree::new(),
            count: 0,
        };
        let va_end = hw::VA_END.into_safe_cast_arch();
        Arc::pin_init(
            try_pin_init!(Self {
                id,
                root: table.root(),
                channel <- ComputeChannel::new(units.compute.clone())?,
                units,
                cred: Credential::current(),
                jobs <- new_mutex!(jobs, "Svm::jobs"),
                pending <- new_mutex!(None, "Svm::pending"),
                scratch <- new_mutex!(Scratch::new()?, "Svm::scratch"),
                work <- new_work!("Svm::work"),
                // SAFETY: An `Svm` is owned by the open file and the list of address spaces of the
                // device, which do not forget it.
                notifier <- unsafe {
                    IntervalNotifier::new(mm, 0..va_end, new_mutex!(table, "Svm::notifier"))
                },
            }),
            GFP_KERNEL,
        )
    }

    /// Returns the number of the address space.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Returns the VRAM offset of the root page table.
    pub(crate) fn root(&self) -> u64 {
        self.root
    }

    /// Checks that `mm` is that of the process the address space belongs to.
    ///
    /// # Errors
    ///
    /// `EPERM` if not.
    pub(crate) fn check_owner(&self, mm: &MmWithUser) -> Result {
        if core::ptr::eq(mm.as_raw(), self.notifier.mm().as_raw()) {
            Ok(())
        } else {
            Err(EPERM)
        }
    }

    /// Remembers a job until somebody has waited for it.
    ///
    /// # Errors
    ///
    /// `EBUSY` if there are too many.
    pub(crate) fn add_job(&self, submit: impl FnOnce() -> Result<(u64, Arc<Job>)>) -> Result<u64> {
        let mut jobs = self.jobs.lock();
        if jobs.count >= JOBS_MAX {
            return Err(EBUSY);
        }
        let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
        let (number, job) = submit()?;
        jobs.tree.insert(node.into_node(number, job));
        jobs.count += 1;
        Ok(number)
    }

    /// Returns the job with a number.
    ///
    /// # Errors
    ///
    /// `ENOENT` if there is none.
    pub(crate) fn job(&self, number: u64) -> Result<Arc<Job>> {
        self.jobs.lock().tree.get(&number).cloned().ok_or(ENOENT)
    }

    /// Forgets a job, and returns whether it was known.
    pub(crate) fn remove_job(&self, number: u64) -> bool {
        let mut jobs = self.jobs.lock();
        let known = jobs.tree.remove(&number).is_some();
        jobs.count -= usize::from(known);
        known
    }

    /// Takes note of a fault, and has it served in `queue`.
    ///
    /// A fault that is being served meanwhile is one that the engine has forgotten.
    pub(crate) fn has_faulted(self: Arc<Self>, fault: Fault, queue: &ScopedQueue<'bound>) {
        *self.pending.lock() = Some(fault);
        // If it is in the queue already, it has not looked yet.
        let _ = queue.enqueue(self);
    }

    /// Serves the fault that is pending: lets the engine try again, or cancels the fault, which fails the
    /// job.
    fn serve(&self) {
        let Some(fault) = self.pending.lock().take() else {
            return;
        };
        let job = self.channel.faulting();
        let result = self.fault(
            fault.va,
            fault.access,
            job.as_deref(),
            &mut self.scratch.lock(),
        );
        let Err(error) = result else {
            return self.units.regs.write::<{ reg::FAULT_REPLAY }>(fault.seq);
        };
        // Unless the engine has gone on to another job.
        if let (Some(job), Some(now)) = (job, self.channel.faulting()) {
            if Arc::ptr_eq(&job, &now) {
                job.set_fault(error);
            }
        }
        self.units.regs.write::<{ reg::FAULT_CANCEL }>(fault.seq);
    }

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
    fn fault(
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
        // Not all of them can be had. What matters is the one the GPU asks for.
        match self.make_reachable(mm, va, page, write, scratch) {
            Err(error) if error == EPERM => Err(EFAULT),
            Err(error) if error == ESRCH => Err(ECANCELED),
            result => result,
        }
    }

    /// Maps the pages in a range, all of which lie in the leaf table for `va`.
    fn make_reachable(
        &self,
        mm: &MmWithUser,
        va: u64,
        addresses: Range<u64>,
        write: bool,
        scratch: &mut Scratch<'bound>,
    ) -> Result {
        let addresses = span(&addresses);
        let memory = &self.units.memory;
        let mut move_again = true;

        for _ in 0..ROUNDS {
            self.fill_reserve(scratch)?;
            let pages = addresses.len() / PAGE_SIZE;
            let snapshot = hmm::fault(
                &self.notifier,
                mm,
                addresses.clone(),
                access_for(write),
                Some(memory.pagemap().owner()),
                msecs_to_jiffies(HMM_TIMEOUT),
                scratch.pfns.get_mut(..pages).ok_or(EINVAL)?,
            )?;
            let Some(mut stable) = snapshot.lock() else {
                continue;
            };

            // Pages in VRAM that may not be written to, although they are to be.
            let mut read_only: Option<Range<usize>> = None;
            let indices = &mut scratch.indices;
            indices.clear();
            let (table, pages) = stable.split();
            let targets = pages.filter_map(|page| {
                let address = page.address();
                match page.location() {
                    Location::Device(folio) if write && !page.is_writable() => {
                        let first = read_only.as_ref().map_or(address, |range| range.start);
                        read_only = Some(first..address + PAGE_SIZE);
                        if let Some(index) = memory.pagemap().index_of(folio) {
                            // There is room for as many as there are pages.
                            let _ = indices.push_within_capacity(index);
                        }
                        None
                    }
                    Location::Device(folio) => {
                        memory.mark_used(folio);
                        let target = Target::Vram(memory.offset_of(folio)?);
                        Some((casts::usize_as_u64(address), target, page.is_writable()))
                    }
                    Location::System(system) => {
                        if write {
                            system.mark_dirty();
                        }
                        Some((casts::usize_as_u64(address), Target::System(system), write))
                    }
                }
            });
            let mapped = table.map(va, targets, &mut scratch.reserve)?;
            drop(stable);
            self.units.stats.pages_mapped.add(mapped);

            match read_only {
                None => return Ok(()),
                Some(addresses) => self.make_writable(mm, addresses, move_again, scratch)?,
            }
            move_again = false;
        }
        Err(EBUSY)
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
        let pages = addresses.len() / PAGE_SIZE;
        hmm::fault(
            &self.notifier,
            mm,
            addresses,
            Access::Write,
            None,
            msecs_to_jiffies(HMM_TIMEOUT),
            scratch.pfns.get_mut(..pages).ok_or(EINVAL)?,
        )
        .map(|_| ())
    }

    /// Fills the reserve of page tables. If there is no VRAM for them, all tables of this address
    /// space are given back: what the GPU still needs is mapped again when it faults.
    fn fill_reserve(&self, scratch: &mut Scratch<'bound>) -> Result {
        match scratch.reserve.fill(&self.units.mmu) {
            Err(error) if error == ENOSPC => {
                self.notifier.update_lock().lock().clear();
                scratch.reserve.fill(&self.units.mmu)
            }
            result => result,
        }
    }

    /// Takes the address space away from the GPU: its jobs are cancelled, and when the function
    /// returns, the GPU uses neither its pages nor its page table.
    pub(crate) fn shut_down(&self) {
        self.channel.close();
        self.notifier.update_lock().lock().close();
    }

    /// Unmaps everything from the GPU, and gives all page tables back but the root, which is empty then.
    /// What the GPU still needs is mapped again when it faults.
    pub(crate) fn forget(&self) {
        self.scratch.lock().reserve = Reserve::new();
        self.notifier.update_lock().lock().clear();
    }
}
