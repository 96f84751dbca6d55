// SPDX-License-Identifier: GPL-2.0

//! Shared virtual memory: the GPU uses the addresses of a process.
//!
//! An [`Svm`] is the address space of one open file. Its page table follows that of the process:
//! pages are mapped when the GPU faults on them, and unmapped by an interval notifier when anything
//! happens to them. Nothing is mapped in advance, also not by a migration, so there is one way for
//! a page to become reachable ([`super::reach`]) and one way for it to cease to be
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
//! held while a fault is served, for as long as that takes; others only try to take it. `Svm::jobs`
//! and `SvmTable::list` are outside of `ComputeChannel::queue`, `SvmTable::list` also of 2.; nothing
//! of 1. is taken inside of these three.
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
        hmm::Pfn,
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
    follow::Followers,
    hw::{
        self,
        reg,
        Fault, //
    },
    job::Job,
    mmu::Mmu,
    page_table::{
        PageTable,
        Reserve, //
    },
    regs::Regs,
    stats::{
        ClientStats,
        Stats, //
    },
    syncobj::Fences, //
};

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
    pub(crate) reserve: Reserve<'bound>,
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

/// Jobs by number.
struct Jobs {
    tree: RBTree<u64, Arc<Job>>,
    count: usize,
    /// Number of the last one; never zero for a job.
    last: u64,
}

/// The GPU's address space of a process.
#[pin_data]
pub(crate) struct Svm<'bound> {
    /// Number of the address space; never used again.
    id: u64,
    root: u64,
    pub(crate) units: Units<'bound>,
    /// Those of the program that attached: its faults are served with them.
    pub(crate) cred: ARef<Credential>,
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
    pub(crate) stats: Arc<ClientStats>,
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
            last: 0,
        };
        let stats = Arc::new(ClientStats::default(), GFP_KERNEL)?;
        let va_end = hw::VA_END.into_safe_cast_arch();
        Arc::pin_init(
            try_pin_init!(Self {
                id,
                root: table.root(),
                channel <- ComputeChannel::new(units.compute.clone(), stats.clone())?,
                units,
                cred: Credential::current(),
                jobs <- new_mutex!(jobs, "Svm::jobs"),
                pending <- new_mutex!(None, "Svm::pending"),
                scratch <- new_mutex!(Scratch::new()?, "Svm::scratch"),
                work <- new_work!("Svm::work"),
                stats,
                // SAFETY: An `Svm` is owned by the list of address spaces of the device, and by
                // work that is queued. Both queues are destroyed, and the list is dropped, before
                // `'bound` ends; neither forgets what it owns.
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

    /// Queues a job, and remembers it until somebody has waited for it. Returns its number.
    ///
    /// # Errors
    ///
    /// `EBUSY` if there are too many; those of [`ComputeChannel::submit`].
    pub(crate) fn add_job(
        self: Arc<Self>,
        job: Arc<Job>,
        fences: Fences,
        followers: &Followers<'bound>,
    ) -> Result<u64> {
        let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
        let follower = match fences.is_empty() {
            true => None,
            false => Some(followers.prepare(self.clone())?),
        };
        let mut jobs = self.jobs.lock();
        if jobs.count >= JOBS_MAX {
            return Err(EBUSY);
        }
        let follow = self.channel.submit(job.clone(), fences)?;
        if let Some(follower) = follower.filter(|_| follow) {
            followers.start(follower);
        }
        jobs.last += 1;
        let number = jobs.last;
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
        self.stats.gpu_faults.add(1);
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

    /// Takes the address space away from the GPU: its jobs are cancelled, and when the function
    /// returns, the GPU uses neither its pages nor its page table.
    pub(crate) fn shut_down(&self) {
        self.channel.close();
        self.notifier.update_lock().lock().close();
    }

    /// Unmaps everything from the GPU, and gives all page tables back but the root, which is empty then.
    /// What the GPU still needs is mapped again when it faults.
    ///
    /// Returns whether the tables were given back that are ready for a fault, too. They are not while
    /// one is served, which may take for ever.
    pub(crate) fn forget(&self) -> bool {
        let reserve = self
            .scratch
            .try_lock()
            .map(|mut scratch| core::mem::replace(&mut scratch.reserve, Reserve::new()));
        self.notifier.update_lock().lock().clear();
        reserve.is_some()
    }
}
