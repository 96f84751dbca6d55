// SPDX-License-Identifier: GPL-2.0
//! DRM syncobjs, and fences of another driver to put into them.

use crate::gpu::Gpu;
use crate::sys::ioctl;
use crate::uapi;
use nix::errno::Errno;
use nix::time::clock_gettime;
use nix::time::ClockId;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

/// Number of a call of all DRM drivers that reads and writes its argument.
const fn request<T>(number: u32) -> u32 {
    (3 << 30) | ((size_of::<T>() as u32) << 16) | ((b'd' as u32) << 8) | number
}

const CREATE: u32 = request::<uapi::drm_syncobj_create>(0xbf);
const DESTROY: u32 = request::<uapi::drm_syncobj_destroy>(0xc0);
const HANDLE_TO_FD: u32 = request::<uapi::drm_syncobj_handle>(0xc1);
const FD_TO_HANDLE: u32 = request::<uapi::drm_syncobj_handle>(0xc2);
const WAIT: u32 = request::<uapi::drm_syncobj_wait>(0xc3);
const RESET: u32 = request::<uapi::drm_syncobj_array>(0xc4);
const SIGNAL: u32 = request::<uapi::drm_syncobj_array>(0xc5);

/// `struct sync_file_info`
#[repr(C)]
#[derive(Default)]
struct SyncFileInfo {
    name: [u8; 32],
    status: i32,
    flags: u32,
    num_fences: u32,
    pad: u32,
    fences: u64,
}

const SYNC_IOC_FILE_INFO: libc::Ioctl =
    nix::request_code_readwrite!(b'>', 4, size_of::<SyncFileInfo>());

/// A syncobj of an open GPU.
#[derive(Debug)]
pub struct Syncobj<'gpu> {
    gpu: &'gpu Gpu,
    handle: u32,
}

impl<'gpu> Syncobj<'gpu> {
    /// Makes one that is empty, or has a fence that is signalled.
    pub fn new(gpu: &'gpu Gpu, signalled: bool) -> Result<Self, Errno> {
        let mut argument = uapi::drm_syncobj_create {
            flags: if signalled {
                uapi::DRM_SYNCOBJ_CREATE_SIGNALED
            } else {
                0
            },
            ..Default::default()
        };
        gpu.ioctl(CREATE, &mut argument)?;
        Ok(Syncobj {
            gpu,
            handle: argument.handle,
        })
    }

    /// Makes one with a fence of another driver.
    pub fn with(gpu: &'gpu Gpu, fence: &Fence) -> Result<Self, Errno> {
        let syncobj = Self::new(gpu, false)?;
        let mut argument = uapi::drm_syncobj_handle {
            handle: syncobj.handle,
            flags: uapi::DRM_SYNCOBJ_FD_TO_HANDLE_FLAGS_IMPORT_SYNC_FILE,
            fd: fence.sync_file.as_raw_fd(),
            ..Default::default()
        };
        gpu.ioctl(FD_TO_HANDLE, &mut argument)?;
        Ok(syncobj)
    }

    /// The same syncobj in another open GPU.
    pub fn share<'other>(&self, gpu: &'other Gpu) -> Result<Syncobj<'other>, Errno> {
        let file = self.to_fd(0)?;
        let mut argument = uapi::drm_syncobj_handle {
            fd: file.as_raw_fd(),
            ..Default::default()
        };
        gpu.ioctl(FD_TO_HANDLE, &mut argument)?;
        Ok(Syncobj {
            gpu,
            handle: argument.handle,
        })
    }

    fn to_fd(&self, flags: u32) -> Result<OwnedFd, Errno> {
        let mut argument = uapi::drm_syncobj_handle {
            handle: self.handle,
            flags,
            fd: -1,
            ..Default::default()
        };
        self.gpu.ioctl(HANDLE_TO_FD, &mut argument)?;
        // SAFETY: The call has made the descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(argument.fd) })
    }

    /// What names it.
    pub fn handle(&self) -> u32 {
        self.handle
    }

    /// Replaces its fence by one that is signalled, or by none.
    pub fn set(&self, signalled: bool) -> Result<(), Errno> {
        let handles = [self.handle];
        let mut argument = uapi::drm_syncobj_array {
            handles: handles.as_ptr() as u64,
            count_handles: 1,
            ..Default::default()
        };
        let request = if signalled { SIGNAL } else { RESET };
        self.gpu.ioctl(request, &mut argument)
    }

    /// Status of its fence: 0 while that is not signalled, 1, or a negative errno. EINVAL if it has
    /// none.
    pub fn status(&self) -> Result<i32, Errno> {
        let file = self.to_fd(uapi::DRM_SYNCOBJ_HANDLE_TO_FD_FLAGS_EXPORT_SYNC_FILE)?;
        let mut info = SyncFileInfo::default();
        ioctl(&file, SYNC_IOC_FILE_INFO, &mut info)?;
        Ok(info.status)
    }

    /// Waits until it has a fence, and that is signalled; ETIME when that takes longer than
    /// `timeout`.
    pub fn wait(&self, timeout: Duration) -> Result<(), Errno> {
        let end = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?) + timeout;
        let handles = [self.handle];
        let mut argument = uapi::drm_syncobj_wait {
            handles: handles.as_ptr() as u64,
            count_handles: 1,
            timeout_nsec: i64::try_from(end.as_nanos()).unwrap_or(i64::MAX),
            flags: uapi::DRM_SYNCOBJ_WAIT_FLAGS_WAIT_FOR_SUBMIT,
            ..Default::default()
        };
        self.gpu.ioctl(WAIT, &mut argument)
    }
}

impl Drop for Syncobj<'_> {
    fn drop(&mut self) {
        let mut argument = uapi::drm_syncobj_destroy {
            handle: self.handle,
            ..Default::default()
        };
        // When the device has gone, so have its handles.
        let _ = self.gpu.ioctl(DESTROY, &mut argument);
    }
}

/// `struct drm_vgem_fence_attach`
#[repr(C)]
#[derive(Default)]
struct Attach {
    handle: u32,
    flags: u32,
    fence: u32,
    pad: u32,
}

/// `struct drm_vgem_fence_signal`
#[repr(C)]
struct Signal {
    fence: u32,
    flags: u32,
}

/// `struct dma_buf_export_sync_file`
#[repr(C)]
struct Export {
    flags: u32,
    fd: i32,
}

/// `VGEM_FENCE_WRITE`
const WRITE: u32 = 1;
/// `DMA_BUF_SYNC_READ`: the fences of those who write.
const SYNC_READ: u32 = 1;

const CREATE_DUMB: u32 = request::<uapi::drm_mode_create_dumb>(0xb2);
const PRIME_HANDLE_TO_FD: u32 = request::<uapi::drm_prime_handle>(0x2d);
const VGEM_FENCE_ATTACH: u32 = request::<Attach>(0x41);
const VGEM_FENCE_SIGNAL: u32 = request::<Signal>(0x42);
const EXPORT_SYNC_FILE: libc::Ioctl = nix::request_code_readwrite!(b'b', 2, size_of::<Export>());

/// A fence that is signalled when the test says so: one of the driver vgem, for a buffer that
/// nobody uses.
///
/// It is also signalled after ten seconds, and when this is dropped.
#[derive(Debug)]
pub struct Fence {
    card: File,
    number: u32,
    sync_file: OwnedFd,
}

impl Fence {
    /// The node of the driver, if it is there.
    fn card() -> io::Result<Option<PathBuf>> {
        for entry in fs::read_dir("/sys/class/drm")? {
            let name = entry?.file_name();
            let device =
                fs::canonicalize(PathBuf::from("/sys/class/drm").join(&name).join("device"));
            let is_vgem = device.is_ok_and(|device| device.ends_with("vgem"));
            if is_vgem && name.to_string_lossy().starts_with("card") {
                return Ok(Some(PathBuf::from("/dev/dri").join(name)));
            }
        }
        Ok(None)
    }

    /// Makes one that is not signalled; none if the driver is not there.
    pub fn new() -> io::Result<Option<Self>> {
        let Some(card) = Self::card()? else {
            return Ok(None);
        };
        let card = OpenOptions::new().read(true).write(true).open(card)?;
        let mut dumb = uapi::drm_mode_create_dumb {
            width: 64,
            height: 64,
            bpp: 8,
            ..Default::default()
        };
        ioctl(&card, CREATE_DUMB, &mut dumb)?;

        let mut attach = Attach {
            handle: dumb.handle,
            flags: WRITE,
            ..Default::default()
        };
        ioctl(&card, VGEM_FENCE_ATTACH, &mut attach)?;

        let mut prime = uapi::drm_prime_handle {
            handle: dumb.handle,
            ..Default::default()
        };
        ioctl(&card, PRIME_HANDLE_TO_FD, &mut prime)?;
        // SAFETY: The call has made the descriptor for us.
        let buffer = unsafe { OwnedFd::from_raw_fd(prime.fd) };
        let mut export = Export {
            flags: SYNC_READ,
            fd: -1,
        };
        ioctl(&buffer, EXPORT_SYNC_FILE, &mut export)?;

        Ok(Some(Fence {
            card,
            number: attach.fence,
            // SAFETY: The call has made the descriptor for us.
            sync_file: unsafe { OwnedFd::from_raw_fd(export.fd) },
        }))
    }

    /// Signals it; ETIMEDOUT if it was signalled already, since that took too long.
    pub fn signal(&self) -> Result<(), Errno> {
        let mut argument = Signal {
            fence: self.number,
            flags: 0,
        };
        ioctl(&self.card, VGEM_FENCE_SIGNAL, &mut argument)
    }
}
