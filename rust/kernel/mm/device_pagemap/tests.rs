// SPDX-License-Identifier: GPL-2.0

//! Tests with a device whose memory is an array.
//!
//! They run in a kernel thread that gets an address space of its own, so that pages can be moved,
//! and touched as a program would.

use super::*;
use crate::{
    current,
    device::Bound,
    error::to_result,
    faux,
    mm::{
        hmm,
        interval_notifier::{
            IntervalNotifier,
            Invalidate,
            Invalidation, //
        },
        vma_walk::Span,
        MmWithUser, //
    },
    new_mutex,
    page::PAGE_SIZE,
    sync::Mutex,
    time::msecs_to_jiffies,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// Pages of the device, and of the memory the tests move.
const PAGES: usize = 40;

// From `include/uapi/asm-generic/mman-common.h`, which the bindings do not have.
const PROT_READ: usize = 1;
const PROT_WRITE: usize = 2;
const MAP_SHARED: usize = 1;
const MAP_PRIVATE: usize = 2;
const MAP_ANONYMOUS: usize = 0x20;

/// Fails the test, telling where, if a condition does not hold.
///
/// Unlike `assert!` it does not kill the thread, so destructors run.
macro_rules! ensure {
    ($condition:expr) => {
        if !$condition {
            crate::pr_err!(
                "{}:{}: failed: {}\n",
                file!(),
                line!(),
                stringify!($condition)
            );
            return Err(EINVAL);
        }
    };
}

/// A device with memory that only [`FakeOps::copy_to_ram`] and [`FakeOps::copy_in`] can reach.
#[pin_data]
struct FakeOps {
    #[pin]
    memory: Mutex<KVVec<u8>>,
    freed: Atomic<usize>,
    broken: Atomic<bool>,
}

impl FakeOps {
    fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            memory <- new_mutex!(KVVec::from_elem(0xee, PAGES * PAGE_SIZE, GFP_KERNEL)?),
            freed: Atomic::new(0),
            broken: Atomic::new(false),
        })
    }

    /// Calls `f` with a page of the device and that of a locked folio in system memory.
    fn with_pages(&self, index: usize, folio: &Folio, f: impl FnOnce(&mut [u8], &mut [u8])) {
        let mut memory = self.memory.lock();
        let Some(device) = memory.chunks_exact_mut(PAGE_SIZE).nth(index) else {
            return;
        };
        // SAFETY: A folio starts with its `struct page`, and is in system memory.
        let address = unsafe { bindings::kmap_local_page(folio.as_raw().cast()) };
        // SAFETY: The page is mapped, and the lock of the folio keeps others from using it.
        let system = unsafe { core::slice::from_raw_parts_mut(address.cast::<u8>(), PAGE_SIZE) };
        f(device, system);
        // SAFETY: The page was mapped above, and nothing was since.
        unsafe { bindings::kunmap_local(address) };
    }

    /// Copies what is to be moved to the device.
    fn copy_in(&self, index: usize, source: Source<'_>) {
        match source {
            Source::Folio(folio) => self.with_pages(index, folio, |device, system| {
                device.copy_from_slice(system)
            }),
            Source::Zero => {
                if let Some(page) = self.memory.lock().chunks_exact_mut(PAGE_SIZE).nth(index) {
                    page.fill(0);
                }
            }
        }
    }
}

impl DevicePrivateOps for FakeOps {
    fn folio_free(&self, _index: usize) {
        self.freed.add(1, Relaxed);
    }

    fn copy_to_ram(&self, copies: &mut [DeviceCopy]) {
        for copy in copies {
            if self.broken.load(Relaxed) {
                copy.set_result(Err(EIO));
                continue;
            }
            self.with_pages(copy.index(), copy.destination(), |device, system| {
                system.copy_from_slice(device)
            });
            copy.set_result(Ok(()));
        }
    }
}

fn device(registration: &faux::Registration) -> &Device<Bound> {
    let dev: &faux::Device<Bound> = registration.as_ref();
    dev.as_ref()
}

/// The device memory, and the device it belongs to.
struct Fake {
    pagemap: Pin<KBox<DevicePagemap<FakeOps>>>,
    _dev: faux::Registration,
}

impl Fake {
    fn new() -> Result<Self> {
        let dev = faux::Registration::new(c"rust-device-memory", None)?;
        // SAFETY: The box is never forgotten.
        let init = unsafe {
            DevicePagemap::new(
                device(&dev),
                c"rust-device-memory",
                PAGES * PAGE_SIZE,
                FakeOps::new(),
            )
        };
        Ok(Self {
            pagemap: KBox::pin_init(init, GFP_KERNEL)?,
            _dev: dev,
        })
    }

    fn freed(&self) -> usize {
        self.pagemap.ops().freed.load(Relaxed)
    }

    /// Moves what can be moved of an area, and returns how many pages that was.
    fn take_in(&self, mm: &MmWithUser, area: &Area) -> Result<usize> {
        let mut buffer = MigrationBuffer::new(PAGES, GFP_KERNEL)?;
        let mmap = mm.mmap_read_lock();
        let mut migration =
            Migration::collect(&mmap, area.addresses(), self.pagemap.owner(), &mut buffer)?;
        for mut entry in migration.entries() {
            let index = entry.index();
            let dst = self.pagemap.claim(index)?;
            self.pagemap.ops().copy_in(index, entry.source());
            entry.set_destination(dst);
        }
        Ok(migration.migrate().moved())
    }
}

/// Memory of a program.
struct Area {
    start: usize,
    pages: usize,
}

impl Area {
    /// Maps memory into the address space of the thread, which gets one if it has none.
    fn map(pages: usize, flags: usize) -> Result<Self> {
        // SAFETY: This is a thread of KUnit.
        to_result(unsafe { bindings::kunit_attach_mm() })?;
        // SAFETY: The thread has an address space. There is no file.
        let start = unsafe {
            bindings::vm_mmap(
                core::ptr::null_mut(),
                0,
                pages * PAGE_SIZE,
                PROT_READ | PROT_WRITE,
                flags | MAP_ANONYMOUS,
                0,
            )
        };
        from_err_ptr(start as *mut c_void)?;
        Ok(Self { start, pages })
    }

    /// Maps anonymous memory and fills it.
    fn private(pages: usize) -> Result<Self> {
        let area = Self::map(pages, MAP_PRIVATE)?;
        area.fill()?;
        Ok(area)
    }

    /// Maps a file of tmpfs and fills it.
    #[cfg(CONFIG_DEVCACHE)]
    fn shared(pages: usize) -> Result<Self> {
        let area = Self::map(pages, MAP_SHARED)?;
        area.fill()?;
        Ok(area)
    }

    fn addresses(&self) -> Range<usize> {
        self.start..self.start + self.pages * PAGE_SIZE
    }

    fn slice(&self) -> UserSlice {
        UserSlice::new(UserPtr::from_addr(self.start), self.pages * PAGE_SIZE)
    }

    /// What byte number `i` of the area is filled with: no two pages are equal.
    fn pattern(i: usize) -> u8 {
        (i / PAGE_SIZE * 7 + i % 251) as u8
    }

    fn fill(&self) -> Result {
        let mut content = KVVec::with_capacity(self.pages * PAGE_SIZE, GFP_KERNEL)?;
        for i in 0..self.pages * PAGE_SIZE {
            content.push(Self::pattern(i), GFP_KERNEL)?;
        }
        self.slice().writer().write_slice(&content)
    }

    /// Reads the area as the CPU does, and compares.
    fn has(&self, expected: impl Fn(usize) -> u8) -> Result<bool> {
        let mut content = KVVec::from_elem(0u8, self.pages * PAGE_SIZE, GFP_KERNEL)?;
        self.slice().reader().read_slice(&mut content)?;
        Ok(content.iter().enumerate().all(|(i, &b)| b == expected(i)))
    }

    fn is_intact(&self) -> Result<bool> {
        self.has(Self::pattern)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: The area was mapped by `map`, in the address space that the thread still has.
        unsafe { bindings::vm_munmap(self.start, self.pages * PAGE_SIZE) };
    }
}

/// Counts invalidations.
struct Counter(usize);

impl Invalidate for Counter {
    fn invalidate(&mut self, _invalidation: &Invalidation<'_>) {
        self.0 += 1;
    }
}

impl Counter {
    fn watch(mm: &MmWithUser, area: &Area) -> Result<Pin<KBox<IntervalNotifier<Self>>>> {
        // SAFETY: The box is never forgotten.
        let init = unsafe { IntervalNotifier::new(mm, area.addresses(), new_mutex!(Counter(0))) };
        KBox::pin_init(init, GFP_KERNEL)
    }
}

/// Returns how many pages of an area [`hmm::fault`] finds on a device, and how many in RAM.
fn locate(
    mm: &MmWithUser,
    area: &Area,
    access: hmm::Access,
    owner: Option<PagemapOwner>,
) -> Result<(usize, usize)> {
    let notifier = Counter::watch(mm, area)?;
    loop {
        let mut pfns = KVec::from_elem(hmm::Pfn::NONE, area.pages, GFP_KERNEL)?;
        let snapshot = hmm::fault(
            &notifier,
            mm,
            area.addresses(),
            access,
            owner,
            msecs_to_jiffies(1000),
            &mut pfns,
        )?;
        let Some(mut stable) = snapshot.lock() else {
            continue;
        };
        let (mut device, mut system) = (0, 0);
        for page in stable.split().1 {
            match page.location() {
                hmm::Location::Device(_) => device += 1,
                hmm::Location::System(_) => system += 1,
            }
        }
        return Ok((device, system));
    }
}

/// The page is claimed once, and free again when the folio is dropped.
fn claims() -> Result {
    let fake = Fake::new()?;
    let folio = fake.pagemap.claim(3)?;

    ensure!(folio.is_device_private());
    ensure!(fake.pagemap.index_of(&folio) == Some(3));
    ensure!(fake.pagemap.pages_in_use() == 1);
    ensure!(fake.pagemap.claim(3).err() == Some(EBUSY));
    ensure!(fake.pagemap.claim(PAGES).err() == Some(EINVAL));

    drop(folio);
    ensure!(fake.freed() == 1);
    ensure!(fake.pagemap.pages_in_use() == 0);
    drop(fake.pagemap.claim(3)?);
    Ok(())
}

/// A size that is not a number of pages is refused.
fn bad_sizes() -> Result {
    let dev = faux::Registration::new(c"rust-device-memory", None)?;
    for size in [0, PAGE_SIZE + 1] {
        // SAFETY: The box, if there is one, is never forgotten.
        let init = unsafe { DevicePagemap::new(device(&dev), c"unused", size, FakeOps::new()) };
        ensure!(KBox::pin_init(init, GFP_KERNEL).err() == Some(EINVAL));
    }
    Ok(())
}

/// Anonymous memory goes to the device, and comes back with its content when the CPU reads it.
fn cpu_fault() -> Result {
    let fake = Fake::new()?;
    let area = Area::private(PAGES)?;
    let task = current!();
    let mm = task.mm().ok_or(EINVAL)?;

    ensure!(fake.take_in(mm, &area)? == PAGES);
    ensure!(fake.pagemap.pages_in_use() == PAGES);
    let owner = Some(fake.pagemap.owner());
    ensure!(locate(mm, &area, hmm::Access::None, owner)? == (PAGES, 0));

    ensure!(area.is_intact()?);
    ensure!(fake.pagemap.pages_in_use() == 0);
    ensure!(fake.freed() == PAGES);
    ensure!(locate(mm, &area, hmm::Access::None, owner)? == (0, PAGES));
    Ok(())
}

/// Memory that was never touched arrives as zeroes on the device, and comes back as such.
fn zero_pages() -> Result {
    let fake = Fake::new()?;
    let area = Area::map(PAGES, MAP_PRIVATE)?;
    let task = current!();
    let mm = task.mm().ok_or(EINVAL)?;

    ensure!(fake.take_in(mm, &area)? == PAGES);
    ensure!(area.has(|_| 0)?);
    Ok(())
}

/// All ways that do not need the CPU to touch a page bring it back.
fn returns() -> Result {
    let fake = Fake::new()?;
    let area = Area::private(PAGES)?;
    let task = current!();
    let mm = task.mm().ok_or(EINVAL)?;

    fake.take_in(mm, &area)?;
    let evicted = fake.pagemap.evict(1..PAGES + 5);
    ensure!(evicted.pages == PAGES - 1 && evicted.result.is_ok());
    ensure!(fake.pagemap.pages_in_use() == 1);
    ensure!(fake.pagemap.evict(0..1).pages == 1);

    fake.take_in(mm, &area)?;
    let mut buffer = MigrationBuffer::new(PAGES, GFP_KERNEL)?;
    let mmap = mm.mmap_read_lock();
    let returned = fake
        .pagemap
        .migrate_to_ram(&mmap, area.addresses(), &mut buffer)?;
    drop(mmap);
    ensure!(returned.pages == PAGES && returned.result.is_ok());

    fake.take_in(mm, &area)?;
    ensure!(locate(mm, &area, hmm::Access::Write, None)? == (0, PAGES));

    ensure!(area.is_intact()?);
    Ok(())
}

/// When the copy fails the content stays on the device, and nothing else is shown in its place.
fn copy_error() -> Result {
    let fake = Fake::new()?;
    let area = Area::private(3)?;
    let task = current!();
    let mm = task.mm().ok_or(EINVAL)?;

    fake.take_in(mm, &area)?;
    fake.pagemap.ops().broken.store(true, Relaxed);
    let evicted = fake.pagemap.evict(0..PAGES);
    ensure!(evicted.pages == 0 && evicted.result == Err(EIO));
    ensure!(area.is_intact().err() == Some(EFAULT));
    ensure!(fake.pagemap.pages_in_use() == 3);

    fake.pagemap.ops().broken.store(false, Relaxed);
    ensure!(area.is_intact()?);
    Ok(())
}

/// Dropping the device memory brings all pages back.
fn drop_returns() -> Result {
    let fake = Fake::new()?;
    let area = Area::private(PAGES)?;
    let task = current!();
    let mm = task.mm().ok_or(EINVAL)?;

    ensure!(fake.take_in(mm, &area)? == PAGES);
    drop(fake);
    ensure!(area.is_intact()?);
    Ok(())
}

/// A migration that ends early leaves everything as it was.
fn abandoned() -> Result {
    let fake = Fake::new()?;
    let area = Area::private(PAGES)?;
    let task = current!();
    let mm = task.mm().ok_or(EINVAL)?;

    let mut buffer = MigrationBuffer::new(PAGES, GFP_KERNEL)?;
    let mmap = mm.mmap_read_lock();
    let mut migration =
        Migration::collect(&mmap, area.addresses(), fake.pagemap.owner(), &mut buffer)?;
    ensure!(migration.entries().count() == PAGES);
    for mut entry in migration.entries() {
        ensure!(entry.is_writable());
        ensure!(entry.destination().is_none());
        entry.set_destination(fake.pagemap.claim(entry.index())?);
        // Only every second page keeps its destination.
        if entry.index() % 2 == 0 {
            drop(entry.take_destination());
        }
    }
    ensure!(fake.pagemap.pages_in_use() == PAGES / 2);
    drop(migration);
    ensure!(fake.pagemap.pages_in_use() == 0);

    // Without a destination nothing moves, also if the migration is completed.
    let migration = Migration::collect(&mmap, area.addresses(), fake.pagemap.owner(), &mut buffer)?;
    ensure!(migration.migrate().moved() == 0);
    drop(mmap);

    ensure!(area.is_intact()?);
    Ok(())
}

/// Ranges that are not pages of one area are refused, before anything happens.
fn bad_ranges() -> Result {
    let fake = Fake::new()?;
    let area = Area::private(2)?;
    let task = current!();
    let mm = task.mm().ok_or(EINVAL)?;
    let mut buffer = MigrationBuffer::new(2, GFP_KERNEL)?;
    let Range { start, end } = area.addresses();

    let mmap = mm.mmap_read_lock();
    for range in [
        start + 1..end,
        start..end - 1,
        start..start,
        end..start,
        start..end + PAGE_SIZE,
        0..PAGE_SIZE,
    ] {
        let collected = Migration::collect(&mmap, range, fake.pagemap.owner(), &mut buffer);
        ensure!(collected.err() == Some(EINVAL));
    }
    drop(mmap);

    let notifier = Counter::watch(mm, &area)?;
    for range in [
        start + 1..end,
        start..start,
        0..PAGE_SIZE,
        start..end + PAGE_SIZE,
    ] {
        let mut pfns = [hmm::Pfn::NONE; 2];
        let found = hmm::fault(&notifier, mm, range, hmm::Access::None, None, 1, &mut pfns);
        ensure!(found.err() == Some(EINVAL));
    }
    Ok(())
}

/// What was seen before an invalidation is stale after it.
fn invalidation() -> Result {
    let area = Area::private(2)?;
    let task = current!();
    let mm = task.mm().ok_or(EINVAL)?;
    let notifier = Counter::watch(mm, &area)?;

    let seq = notifier.read_begin();
    ensure!(notifier.lock(seq).is_some());
    ensure!(notifier.lock(seq).is_some());

    // SAFETY: The area is mapped; it is unmapped a second time without harm.
    to_result(unsafe { bindings::vm_munmap(area.start, PAGE_SIZE) })?;
    ensure!(notifier.lock(seq).is_none());

    let seq = notifier.read_begin();
    let Some(counter) = notifier.lock(seq) else {
        return Err(EAGAIN);
    };
    ensure!(counter.0 > 0);
    drop(counter);

    let mut pfns = [hmm::Pfn::NONE; 2];
    let found = hmm::fault(
        &notifier,
        mm,
        area.addresses(),
        hmm::Access::Read,
        None,
        msecs_to_jiffies(1000),
        &mut pfns,
    );
    ensure!(found.err() == Some(EFAULT));
    Ok(())
}

/// A range is cut at the borders of areas.
fn spans() -> Result {
    let area = Area::private(3)?;
    let task = current!();
    let mm = task.mm().ok_or(EINVAL)?;
    let Range { start, end } = area.addresses();
    let middle = start + PAGE_SIZE..start + 2 * PAGE_SIZE;

    // SAFETY: The area is mapped; it is unmapped a second time without harm.
    to_result(unsafe { bindings::vm_munmap(middle.start, PAGE_SIZE) })?;

    let mmap = mm.mmap_read_lock();
    let mut spans = mmap.spans(start..end - 1);
    let Some(Span::Mapped { vma, addresses }) = spans.next() else {
        return Err(EINVAL);
    };
    ensure!(vma.is_anonymous() && vma.is_migratable());
    ensure!(addresses == (start..middle.start));
    let Some(Span::Unmapped { addresses }) = spans.next() else {
        return Err(EINVAL);
    };
    ensure!(addresses == middle);
    let Some(Span::Mapped { addresses, .. }) = spans.next() else {
        return Err(EINVAL);
    };
    ensure!(addresses == (middle.end..end - 1));
    ensure!(spans.next().is_none());
    Ok(())
}

/// Pages of a file go to the device and come back when they are read, and when it goes away.
#[cfg(CONFIG_DEVCACHE)]
fn file_pages() -> Result {
    let fake = Fake::new()?;
    let area = Area::shared(PAGES)?;
    let task = current!();
    let mm = task.mm().ok_or(EINVAL)?;

    ensure!(fake.take_in(mm, &area)? == PAGES);
    let owner = Some(fake.pagemap.owner());
    ensure!(locate(mm, &area, hmm::Access::None, owner)? == (PAGES, 0));
    ensure!(area.is_intact()?);
    ensure!(fake.pagemap.pages_in_use() == 0);

    ensure!(fake.take_in(mm, &area)? == PAGES);
    drop(fake);
    ensure!(area.is_intact()?);
    Ok(())
}

#[kunit_tests(rust_device_memory)]
mod suite {
    #[test]
    fn page_is_claimed_once() -> crate::error::Result {
        super::claims()
    }

    #[test]
    fn bad_sizes_are_refused() -> crate::error::Result {
        super::bad_sizes()
    }

    #[test]
    fn cpu_fault_brings_content_back() -> crate::error::Result {
        super::cpu_fault()
    }

    #[test]
    fn untouched_memory_stays_zero() -> crate::error::Result {
        super::zero_pages()
    }

    #[test]
    fn pages_return_on_request() -> crate::error::Result {
        super::returns()
    }

    #[test]
    fn failed_copy_loses_nothing() -> crate::error::Result {
        super::copy_error()
    }

    #[test]
    fn drop_brings_all_pages_back() -> crate::error::Result {
        super::drop_returns()
    }

    #[test]
    fn abandoned_migration_changes_nothing() -> crate::error::Result {
        super::abandoned()
    }

    #[test]
    fn bad_ranges_are_refused() -> crate::error::Result {
        super::bad_ranges()
    }

    #[test]
    fn invalidation_makes_stale() -> crate::error::Result {
        super::invalidation()
    }

    #[test]
    fn range_is_cut_into_spans() -> crate::error::Result {
        super::spans()
    }

    #[cfg(CONFIG_DEVCACHE)]
    #[test]
    fn file_pages_come_back() -> crate::error::Result {
        super::file_pages()
    }
}
