// SPDX-License-Identifier: GPL-2.0

//! What the tests need: a device the memory of which is an array, memory of a program, and a
//! device page table that only counts.

use super::super::*;
use crate::{
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
        migrate_vma::MigrationBuffer,
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
pub(super) const PAGES: usize = 40;

// From `include/uapi/asm-generic/mman-common.h`, which the bindings do not have.
const PROT_READ: usize = 1;
const PROT_WRITE: usize = 2;
const MAP_SHARED: usize = 1;
pub(super) const MAP_PRIVATE: usize = 2;
const MAP_ANONYMOUS: usize = 0x20;

/// A device with memory that only [`FakeOps::copy_to_ram`] and [`FakeOps::copy_in`] can reach.
#[pin_data]
pub(super) struct FakeOps {
    #[pin]
    memory: Mutex<KVVec<u8>>,
    freed: Atomic<usize>,
    pub(super) broken: Atomic<bool>,
}

impl FakeOps {
    pub(super) fn new() -> impl PinInit<Self, Error> {
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

pub(super) fn device(registration: &faux::Registration) -> &Device<Bound> {
    let dev: &faux::Device<Bound> = registration.as_ref();
    dev.as_ref()
}

/// The device memory, and the device it belongs to.
pub(super) struct Fake {
    pub(super) pagemap: Pin<KBox<DevicePagemap<FakeOps>>>,
    _dev: faux::Registration,
}

impl Fake {
    pub(super) fn new() -> Result<Self> {
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

    pub(super) fn freed(&self) -> usize {
        self.pagemap.ops().freed.load(Relaxed)
    }

    /// Moves what can be moved of an area, and returns how many pages that was.
    pub(super) fn take_in(&self, mm: &MmWithUser, area: &Area) -> Result<usize> {
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
pub(super) struct Area {
    pub(super) start: usize,
    pages: usize,
}

impl Area {
    /// Maps memory into the address space of the thread, which gets one if it has none.
    pub(super) fn map(pages: usize, flags: usize) -> Result<Self> {
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
    pub(super) fn private(pages: usize) -> Result<Self> {
        let area = Self::map(pages, MAP_PRIVATE)?;
        area.fill()?;
        Ok(area)
    }

    /// Maps a file of tmpfs and fills it.
    #[cfg(CONFIG_DEVCACHE)]
    pub(super) fn shared(pages: usize) -> Result<Self> {
        let area = Self::map(pages, MAP_SHARED)?;
        area.fill()?;
        Ok(area)
    }

    pub(super) fn addresses(&self) -> Range<usize> {
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
    pub(super) fn has(&self, expected: impl Fn(usize) -> u8) -> Result<bool> {
        let mut content = KVVec::from_elem(0u8, self.pages * PAGE_SIZE, GFP_KERNEL)?;
        self.slice().reader().read_slice(&mut content)?;
        Ok(content.iter().enumerate().all(|(i, &b)| b == expected(i)))
    }

    pub(super) fn is_intact(&self) -> Result<bool> {
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
pub(super) struct Counter(pub(super) usize);

impl Invalidate for Counter {
    fn invalidate(&mut self, _invalidation: &Invalidation<'_>) {
        self.0 += 1;
    }
}

impl Counter {
    pub(super) fn watch(mm: &MmWithUser, area: &Area) -> Result<Pin<KBox<IntervalNotifier<Self>>>> {
        // SAFETY: The box is never forgotten.
        let init = unsafe { IntervalNotifier::new(mm, area.addresses(), new_mutex!(Counter(0))) };
        KBox::pin_init(init, GFP_KERNEL)
    }
}

/// A request that waits for a second at most.
pub(super) fn request(
    mm: &MmWithUser,
    addresses: Range<usize>,
    access: hmm::Access,
    owner: Option<PagemapOwner>,
) -> hmm::Request<'_> {
    hmm::Request {
        mm,
        addresses,
        access,
        owner,
        timeout: msecs_to_jiffies(1000),
    }
}

/// Returns how many pages of an area [`hmm::fault`] finds on a device, and how many in RAM.
pub(super) fn locate(
    mm: &MmWithUser,
    area: &Area,
    access: hmm::Access,
    owner: Option<PagemapOwner>,
) -> Result<(usize, usize)> {
    let notifier = Counter::watch(mm, area)?;
    let mut pfns = KVec::from_elem(hmm::Pfn::NONE, area.pages, GFP_KERNEL)?;
    let request = request(mm, area.addresses(), access, owner);
    hmm::fault(&notifier, request, &mut pfns, |_, pages| {
        pages.fold((0, 0), |(device, system), page| match page.location() {
            hmm::Location::Device(_) => (device + 1, system),
            hmm::Location::System(_) => (device, system + 1),
        })
    })
}
