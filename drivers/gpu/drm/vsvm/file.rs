// SPDX-License-Identifier: GPL-2.0

//! Open files: the ioctls.
//!
//! A file outlives the device if that goes away while it is open. So all it has itself is the
//! number of its address space; the address space belongs to the device.

use kernel::{
    drm::{
        self,
        Registered, //
    },
    num::casts,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        Arc,
        SetOnce, //
    },
    uapi, //
};

use crate::{
    driver::{
        Gpu,
        VsvmDevice,
        VsvmDriver, //
    },
    hw::{
        self,
        ComputeOp,
        Element, //
    },
    job::Job,
    migrate::{
        self,
        Counts,
        Direction, //
    },
    range,
    request::{
        handles,
        Request,
        Work,
        SYNCOBJS_MAX, //
    },
    svm::Svm,
    syncobj::Fences, //
};

const _: () = assert!(SYNCOBJS_MAX == uapi::DRM_VSVM_SYNCOBJS_MAX);

/// Version of the interface for programs.
const INTERFACE_VERSION: u64 = 1;

/// Convenience type alias for the DRM file type of this driver.
pub(crate) type VsvmFile = drm::File<File>;

/// An open file.
pub(crate) struct File {
    /// Number of the attached address space.
    svm: SetOnce<u64>,
}

impl drm::file::DriverFile for File {
    type Driver = VsvmDriver;

    fn open(_device: &VsvmDevice) -> Result<Pin<KBox<Self>>> {
        let file = Self {
            svm: SetOnce::new(),
        };
        Ok(KBox::pin(file, GFP_KERNEL)?)
    }

    fn close(self: Pin<&Self>, device: &VsvmDevice<drm::Ioctl>) {
        // If the device has gone, so has the address space.
        if let (Some(id), Some(guard)) = (self.svm.copy(), device.registration_guard()) {
            guard.registration_data_with(|gpu| gpu.spaces.destroy(id));
        }
    }

    fn show_fdinfo(self: Pin<&Self>, device: &VsvmDevice<drm::Ioctl>, printer: &drm::Printer) {
        let Some(guard) = device.registration_guard() else {
            return;
        };
        guard.registration_data_with(|gpu| {
            let memory = &gpu.units.memory;
            let (total, free) = (memory.size() >> 10, memory.available() >> 10);
            printer.print(fmt!("vsvm-vram-total:\t{total} KiB\n"));
            printer.print(fmt!("vsvm-vram-free:\t{free} KiB\n"));
            let svm = self.svm.copy().and_then(|id| gpu.spaces.by_id(id));
            for (name, value) in svm.iter().flat_map(|svm| svm.stats.all()) {
                printer.print(fmt!("vsvm-{name}:\t{value}\n"));
            }
        });
    }
}

impl File {
    /// Returns the attached address space.
    ///
    /// # Errors
    ///
    /// `ENXIO` if there is none.
    fn svm<'a>(gpu: &Gpu<'a>, file: &VsvmFile) -> Result<Arc<Svm<'a>>> {
        let id = file.inner().svm.copy().ok_or(ENXIO)?;
        gpu.spaces.by_id(id).ok_or(ENXIO)
    }

    /// IOCTL: get_param.
    pub(crate) fn get_param(
        _device: &VsvmDevice<Registered>,
        gpu: &Gpu<'_>,
        args: &mut uapi::drm_vsvm_get_param,
        _file: &VsvmFile,
    ) -> Result<u32> {
        if args.pad != 0 {
            return Err(EINVAL);
        }
        args.value = match args.param {
            uapi::drm_vsvm_param_DRM_VSVM_PARAM_VERSION => INTERFACE_VERSION,
            uapi::drm_vsvm_param_DRM_VSVM_PARAM_VRAM_TOTAL => gpu.units.memory.size(),
            uapi::drm_vsvm_param_DRM_VSVM_PARAM_VRAM_FREE => gpu.units.memory.available(),
            uapi::drm_vsvm_param_DRM_VSVM_PARAM_PAGE_SIZE => casts::usize_as_u64(PAGE_SIZE),
            _ => return Err(EINVAL),
        };
        Ok(0)
    }

    /// IOCTL: svm_attach.
    pub(crate) fn svm_attach(
        _device: &VsvmDevice<Registered>,
        gpu: &Gpu<'_>,
        args: &mut uapi::drm_vsvm_svm_attach,
        file: &VsvmFile,
    ) -> Result<u32> {
        if args.flags != 0 {
            return Err(EINVAL);
        }
        let file = file.inner();
        if file.svm.as_ref().is_some() {
            return Err(EBUSY);
        }
        let task = current!();
        let mm = task.mm().ok_or(EINVAL)?;
        let id = gpu.spaces.create(mm, gpu.units.clone())?;
        if !file.svm.populate(id) {
            // Another thread was faster.
            gpu.spaces.destroy(id);
            return Err(EBUSY);
        }
        args.va_end = hw::VA_END;
        Ok(0)
    }

    /// IOCTL: migrate.
    pub(crate) fn migrate(
        _device: &VsvmDevice<Registered>,
        gpu: &Gpu<'_>,
        args: &mut uapi::drm_vsvm_migrate,
        file: &VsvmFile,
    ) -> Result<u32> {
        let mut counts = Counts::default();
        let result = Self::do_migrate(gpu, args, file, &mut counts);
        (args.moved, args.present, args.skipped) = (counts.moved, counts.present, counts.skipped);
        result.map(|()| 0)
    }

    fn do_migrate(
        gpu: &Gpu<'_>,
        args: &uapi::drm_vsvm_migrate,
        file: &VsvmFile,
        counts: &mut Counts,
    ) -> Result {
        let direction = match args.direction {
            uapi::drm_vsvm_direction_DRM_VSVM_TO_VRAM => Direction::ToVram,
            uapi::drm_vsvm_direction_DRM_VSVM_TO_RAM => Direction::ToRam,
            _ => return Err(EINVAL),
        };
        if args.flags != 0 {
            return Err(EINVAL);
        }
        let addresses = range::pages(args.start, args.length)?;
        let svm = Self::svm(gpu, file)?;
        let task = current!();
        let mm = task.mm().ok_or(EPERM)?;
        svm.check_owner(mm)?;
        migrate::migrate(&svm, mm, addresses, direction, counts)
    }

    /// IOCTL: exec.
    pub(crate) fn exec(
        _device: &VsvmDevice<Registered>,
        gpu: &Gpu<'_>,
        args: &mut uapi::drm_vsvm_exec,
        file: &VsvmFile,
    ) -> Result<u32> {
        args.job = 0;
        let (work, to_vram) = work(args)?;
        let waits = handles(args.wait_syncobjs, args.wait_count).ok_or(EINVAL)?;
        let signals = handles(args.signal_syncobjs, args.signal_count).ok_or(EINVAL)?;
        let svm = Self::svm(gpu, file)?;
        let task = current!();
        svm.check_owner(task.mm().ok_or(EPERM)?)?;
        let fences = Fences::find(file, waits, signals)?;
        let job = Job::new(work, svm.root(), to_vram)?;
        args.job = svm.add_job(job, fences, &gpu.followers)?;
        Ok(0)
    }

    /// IOCTL: wait.
    pub(crate) fn wait(
        _device: &VsvmDevice<Registered>,
        gpu: &Gpu<'_>,
        args: &mut uapi::drm_vsvm_wait,
        file: &VsvmFile,
    ) -> Result<u32> {
        if args.pad != 0 {
            return Err(EINVAL);
        }
        let svm = Self::svm(gpu, file)?;
        let job = svm.job(args.job)?;
        let end = svm
            .channel
            .wait_for(&job, args.timeout_ns, || gpu.faults.wake_thread())?;
        if !svm.remove_job(args.job) {
            // Another thread has got the answer.
            return Err(ENOENT);
        }
        args.status = end.status.map_or_else(Error::to_errno, |()| 0);
        args.result = end.result;
        args.fault_addr = end.fault_addr;
        Ok(0)
    }
}

/// Checks what a program wants to be computed, and returns it with whether pages are to be moved to VRAM
/// for it.
fn work(args: &uapi::drm_vsvm_exec) -> Result<(Work, bool)> {
    let to_vram = uapi::drm_vsvm_exec_flags_DRM_VSVM_EXEC_TO_VRAM;
    if args.flags & !to_vram != 0 {
        return Err(EINVAL);
    }
    let request = Request {
        op: match args.op {
            uapi::drm_vsvm_op_DRM_VSVM_OP_FILL => ComputeOp::Fill,
            uapi::drm_vsvm_op_DRM_VSVM_OP_ADD => ComputeOp::Add,
            uapi::drm_vsvm_op_DRM_VSVM_OP_SAXPY => ComputeOp::Saxpy,
            uapi::drm_vsvm_op_DRM_VSVM_OP_COPY => ComputeOp::Copy,
            uapi::drm_vsvm_op_DRM_VSVM_OP_SUM => ComputeOp::Sum,
            uapi::drm_vsvm_op_DRM_VSVM_OP_CHECKSUM => ComputeOp::Checksum,
            _ => return Err(EINVAL),
        },
        element: match args.type_ {
            uapi::drm_vsvm_type_DRM_VSVM_TYPE_U32 => Element::U32,
            uapi::drm_vsvm_type_DRM_VSVM_TYPE_F32 => Element::F32,
            _ => return Err(EINVAL),
        },
        dst: args.dst,
        src: [args.src_a, args.src_b],
        count: args.count,
        scalar: args.scalar,
    };
    let work = Work::new(&request).ok_or(EINVAL)?;
    Ok((work, args.flags & to_vram != 0))
}

#[cfg(CONFIG_DRM_VSVM_KUNIT_TEST)]
#[kunit_tests(drm_vsvm_exec)]
mod tests {
    use super::*;

    fn saxpy() -> uapi::drm_vsvm_exec {
        uapi::drm_vsvm_exec {
            op: uapi::drm_vsvm_op_DRM_VSVM_OP_SAXPY,
            type_: uapi::drm_vsvm_type_DRM_VSVM_TYPE_F32,
            dst: 0x1000,
            src_a: 0x2000,
            src_b: 0x3000,
            count: 16,
            scalar: 7,
            flags: 0,
            wait_syncobjs: 0,
            signal_syncobjs: 0,
            wait_count: 0,
            signal_count: 0,
            job: 0,
        }
    }

    #[test]
    fn work_is_what_was_asked_for() -> Result {
        let (work, _) = work(&saxpy())?;
        assert_eq!(work.dst, Some(0x1000..0x1040));
        assert_eq!(work.src, [Some(0x2000..0x2040), Some(0x3000..0x3040)]);
        Ok(())
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |change: fn(&mut uapi::drm_vsvm_exec)| {
            let mut args = saxpy();
            change(&mut args);
            work(&args).is_err_and(|error| error == EINVAL)
        };
        assert!(refused(|args| args.op = 99));
        assert!(refused(|args| args.type_ = 2));
        assert!(refused(|args| args.flags = 2));
        assert!(refused(|args| args.count = 0));
        assert!(refused(|args| args.dst = 0x1002));
        assert!(refused(|args| args.op = uapi::drm_vsvm_op_DRM_VSVM_OP_SUM));
    }
}
