// SPDX-License-Identifier: GPL-2.0

//! Tests with a device whose memory is an array.
//!
//! They run in a kernel thread that gets an address space of its own, so that pages can be moved,
//! and touched as a program would.

use super::*;
use crate::{
    current,
    error::to_result,
    faux,
    mm::{
        hmm,
        interval_notifier::Watch,
        migrate_vma::MigrationBuffer,
        vma_walk::Span, //
    },
    page::PAGE_SIZE, //
};

mod fake;

use fake::{
    device,
    locate,
    request,
    Area,
    Counter,
    Fake,
    FakeOps,
    MAP_PRIVATE,
    PAGES, //
};

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
        let request = request(mm, range, hmm::Access::None, None);
        let found = hmm::fault(&notifier, request, &mut [hmm::Pfn::NONE; 2], |_, _| ());
        ensure!(found.err() == Some(EINVAL));
    }
    Ok(())
}

/// What was seen before an invalidation is stale after it, unless that was of other addresses.
fn invalidation() -> Result {
    let area = Area::private(2)?;
    let task = current!();
    let mm = task.mm().ok_or(EINVAL)?;
    let notifier = Counter::watch(mm, &area)?;
    let first = area.start..area.start + PAGE_SIZE;

    // SAFETY: The value stays on the stack, where nobody can forget it.
    let watch = unsafe { Watch::new(&notifier, mm, first.clone()) };
    pin_init::stack_try_pin_init!(let watch =? watch);
    let seq = watch.read_begin();
    ensure!(watch.lock(seq).is_some());
    ensure!(watch.lock(seq).is_some());

    // SAFETY: The area is mapped; it is unmapped a second time without harm.
    to_result(unsafe { bindings::vm_munmap(first.end, PAGE_SIZE) })?;
    ensure!(notifier.update_lock().lock().0 == 1);
    ensure!(watch.lock(seq).is_some());

    // SAFETY: As above.
    to_result(unsafe { bindings::vm_munmap(first.start, PAGE_SIZE) })?;
    ensure!(notifier.update_lock().lock().0 == 3);
    ensure!(watch.lock(seq).is_none());
    let seq = watch.read_begin();
    ensure!(watch.lock(seq).is_some());

    let request = request(mm, area.addresses(), hmm::Access::Read, None);
    let found = hmm::fault(&notifier, request, &mut [hmm::Pfn::NONE; 2], |_, _| ());
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
