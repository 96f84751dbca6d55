// SPDX-License-Identifier: GPL-2.0

//! devcache: page cache folios in the memory of a device.
//!
//! # Model
//!
//! A *device folio* is a `MEMORY_DEVICE_PRIVATE` folio that stands in a file's page cache
//! (`mapping->i_pages`) in place of a system folio. The device computes on its content; the CPU
//! cannot reach it. CPU code may hold a pointer to a device folio, lock it, test its flags and
//! remove it from the page cache. It never maps it and never hands it to the block layer, because
//! the lookup functions that return folios for their content (`__filemap_get_folio()`, read and
//! writeback batches, the two of shmem, fault-around) bring it back first. Lookups for presence,
//! flags or truncation see it as it is.
//!
//! *Admission* moves a folio to a device inside `migrate_vma_*()` (`admit.rs`); *back* moves it to
//! system memory (`back.rs`); a driver *registers* the memory that may take part (`register.rs`).
//! `evict.rs` brings back what a range of device memory holds, `shrink.rs` what is charged to who
//! is short of memory, and `held.rs` knows where that may be. `state.rs` says which moves are
//! legal, `ffi.rs` has the entries for C, `sys.rs` the calls into mm, `stats.rs` the counters.
//!
//! # Why no write is lost
//!
//! Dirtiness is settled at admission. The device may write only where a page table entry was
//! writable for the CPU under the folio lock: there a write fault had succeeded and the file
//! system knows that the page will change. The folio is marked dirty before it moves, and private
//! data (buffers, iomap state) moves along, so fsync, sync and unmount find it as they find any
//! dirty folio and bring it back by their lookup. Nothing clears the flag on the device.
//!
//! Back publishes the system folio only when the copy is complete, for reads copy data without the
//! folio lock as soon as they find an uptodate folio.
//!
//! # Locks
//!
//! Back takes, in this order: the folio lock, then inside `try_to_migrate()` and
//! `remove_migration_ptes()` i_mmap_rwsem and page table locks with mmu notifiers, then the i_pages
//! lock. So it can run under everything that ranks above a folio lock: i_rwsem, mmap_lock,
//! invalidate_lock, a transaction, locks of folios with lower index, folios under writeback in
//! unsubmitted bios. From that follows:
//!
//! * It never takes mmap_lock or invalidate_lock, starts no transaction and reads no disk.
//! * The destination is allocated before the folio lock is taken and without `__GFP_FS`: reclaim
//!   may wait for what the caller holds.
//! * With a device folio locked, the lock of another is only tried, and a locked one is waited for
//!   without a reference.
//! * It does not depend on the reference count. A task that holds a reference on this folio may
//!   wait for a lock that our caller holds; since no holder of a reference can see the content and
//!   all test `folio->mapping` under the lock, the slot can change hands under them.
//! * The driver's copy callback is a leaf: it waits for the device's kernel channel and nothing
//!   else.
//! * What could not be copied is dropped under the folio lock: a clean folio by
//!   `->release_folio()`, a dirty one by `->invalidate_folio()`, then i_lock and i_pages. So these
//!   take nothing that a lookup of such a folio is made under; btrfs looks up with extents locked,
//!   and releases a device folio without.
//! * After the folio is unlocked, neither the mapping nor the inode is touched: only the lock kept
//!   them.
//!
//! The shrinker runs in reclaim, below all of these. It tries folio locks, and does not allocate
//! what is not free.
//!
//! The lock of the list of registered memory is a spinlock and a leaf. Admission takes it with both
//! folios locked, to note where a folio is (`held.rs`). The shrinker takes it with none, and under
//! it only tries to get a reference. No bits are allocated or freed under it: a driver that
//! registers allocates them before, with `GFP_KERNEL`, and one that unregisters frees them after.
//!
//! Admission runs under a page table lock and only tries locks. A folio that is pinned, under
//! writeback or busy in another way stays where it is.
//!
//! # Races
//!
//! * *Two backs of one folio*: the loser waits for the lock, finds `folio->mapping` empty, and
//!   looks up again.
//! * *Back against truncation*: both lock the folio. Truncation first: back finds no mapping.
//!   Back first: truncation finds no mapping in the device folio and scans again.
//! * *Back against fork*: fork may copy a device entry behind the unmapping walk, so that walk is
//!   repeated until no entry is left. Faults on migration entries wait for the folio lock.
//! * *Back against migration*: a system folio returned by a lookup has a reference, which admission
//!   counts, so it cannot leave again before its user is done.
//! * *Admission against unregistering*: see `register.rs`.

mod admit;
mod back;
mod evict;
mod ffi;
mod held;
#[cfg(CONFIG_DEVCACHE_KUNIT_TEST)]
mod kunit;
mod register;
mod shrink;
mod state;
mod stats;
mod sys;

/// Prefix of log messages.
const __LOG_PREFIX: &[u8] = b"devcache\0";
