// SPDX-License-Identifier: GPL-2.0

//! Probing and unbinding.
//!
//! # Taking down
//!
//! The fields of [`VsvmData`] are dropped in the order in which they are declared, and each needs
//! those after it:
//!
//! 1. before anything is dropped, all address spaces are closed: jobs are cancelled, and so those who
//!    wait for them return, since ioctls are waited for next;
//! 2. the DRM device is unregistered, so there are no more ioctls;
//! 3. the followers of jobs go, since their channels are closed; then the fault handler, which
//!    waits until no fault is being served: the last users of address spaces go with it;
//! 4. VRAM is given back: all pages come back to system memory, which needs the copy engine and its
//!    interrupt;
//! 5. the other interrupts and the copy engine go, which stops its channel;
//! 6. the registers are unmapped.

use kernel::{
    device::{
        Bound,
        Core,
        Device,
        DeviceContext, //
    },
    dma::{
        Device as _,
        DmaMask, //
    },
    drm::{
        self,
        gem,
        ioctl, //
    },
    irq,
    num::casts,
    pci::{
        self,
        IrqType,
        IrqTypes,
        IrqVectorRegistration,
        Vendor, //
    },
    prelude::*,
    sync::Arc, //
};

use crate::{
    channel::WakeHandler,
    compute::ComputeUnit,
    copy::CopyEngine,
    dmem::DeviceMemory,
    fault::{
        FaultHandler,
        FaultThread, //
    },
    file::File,
    follow::Followers,
    hw,
    mmu::Mmu,
    power,
    regs::Regs,
    spaces::SvmTable,
    stats::{
        Stats,
        Totals, //
    },
    svm::Units,
    vram::Layout, //
};

/// The PCI and the DRM driver.
pub(crate) struct VsvmDriver;

/// Convenience type alias for the DRM device type of this driver.
pub(crate) type VsvmDevice<Ctx = drm::Normal> = drm::Device<VsvmDriver, Ctx>;

/// What ioctls work with; see the head of the file for the order of the fields.
#[derive(Clone)]
pub(crate) struct Gpu<'bound> {
    pub(crate) followers: Arc<Followers<'bound>>,
    pub(crate) faults: Arc<FaultThread<'bound>>,
    pub(crate) spaces: Arc<SvmTable<'bound>>,
    pub(crate) units: Units<'bound>,
}

type WakeIrq<'bound, T> = Pin<KBox<irq::Registration<'bound, WakeHandler<T>>>>;

/// Everything a bound device has; see the head of the file for the order of the fields.
pub(crate) struct VsvmData<'bound> {
    _registration: drm::Registration<'bound, VsvmDriver>,
    gpu: Gpu<'bound>,
    _totals: Totals<'bound>,
    _compute_irq: WakeIrq<'bound, ComputeUnit<'bound>>,
    _copy_irq: WakeIrq<'bound, CopyEngine<'bound>>,
    _vectors: KBox<IrqVectorRegistration<'bound>>,
}

/// Requests the interrupt of an engine.
fn wake_irq<'bound, T: crate::channel::HasWake + 'bound>(
    vectors: &'bound IrqVectorRegistration<'bound>,
    vector: u32,
    name: &'static CStr,
    engine: Arc<T>,
) -> Result<WakeIrq<'bound, T>> {
    let request = vectors.index(casts::u32_as_usize(vector))?.into();
    // SAFETY: The registration is stored in `VsvmData` and never forgotten.
    let init = unsafe {
        irq::Registration::new(
            request,
            irq::Flags::TRIGGER_NONE,
            name,
            Ok(WakeHandler(engine)),
        )
    };
    KBox::pin_init(init, GFP_KERNEL)
}

kernel::pci_device_table!(
    PCI_TABLE,
    <VsvmDriver as pci::Driver>::IdInfo,
    [(
        pci::DeviceId::from_id(Vendor::REDHAT_QUMRANET, casts::u16_as_u32(hw::PCI_DEVICE)),
        ()
    )]
);

impl pci::Driver for VsvmDriver {
    type IdInfo = ();
    type Data<'bound> = VsvmData<'bound>;
    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;
    const HANDLES_RESET: bool = true;
    const HANDLES_SLEEP: bool = true;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        pdev.enable_device_mem()?;
        pdev.set_master();
        // SAFETY: The device is being probed, so nobody else allocates or maps memory for it.
        unsafe { pdev.dma_set_mask_and_coherent(DmaMask::new::<64>())? };

        let dev: &'bound Device<Bound> = pdev.as_ref();
        let regs = Arc::new(Regs::new(pdev)?, GFP_KERNEL)?;
        regs.reset()
            .inspect_err(|_| dev_err!(dev, "the device does not come to rest\n"))?;

        let types = IrqTypes::default().with(IrqType::MsiX);
        let vectors = pdev.alloc_irq_vectors(hw::VECTORS, hw::VECTORS, types)?;
        let vectors = KBox::new(vectors, GFP_KERNEL)?;
        // SAFETY: The vectors are in a box of `VsvmData`, which is dropped after all that uses them.
        let vector: &'bound IrqVectorRegistration<'bound> =
            unsafe { &*core::ptr::from_ref(&*vectors) };

        let layout = Layout::new(regs.vram_size()?)?;
        let stats = Arc::new(Stats::default(), GFP_KERNEL)?;
        let copy = CopyEngine::new(dev, regs.clone(), stats.clone())?;
        let copy_irq = wake_irq(vector, hw::VECTOR_COPY, c"vsvm-copy", copy.clone())?;
        let compute = ComputeUnit::new(dev, regs.clone(), stats.clone())?;
        let compute_irq = wake_irq(vector, hw::VECTOR_COMPUTE, c"vsvm-compute", compute.clone())?;

        let units = Units {
            dev,
            stats: stats.clone(),
            mmu: Mmu::new(dev, regs.clone(), copy.clone(), layout)?,
            memory: DeviceMemory::new(dev, copy.clone(), layout, stats)?,
            regs,
            copy,
            compute,
        };
        let spaces = SvmTable::new()?;
        // SAFETY: The handler is part of the registration below.
        let handler = unsafe { FaultHandler::new(units.clone(), spaces.clone()) };
        let request = vector.index(casts::u32_as_usize(hw::VECTOR_FAULT))?.into();
        let flags = irq::Flags::TRIGGER_NONE;
        // SAFETY: All references are stored in `VsvmData` and never forgotten.
        let fault_irq = unsafe { FaultThread::new(request, flags, c"vsvm-fault", handler) };
        let fault_irq = Arc::pin_init(fault_irq, GFP_KERNEL)?;

        let drm = drm::UnregisteredDevice::<Self>::new(pdev, Ok(()))?;
        let totals = Totals::new(dev, units.stats.clone())?;
        let gpu = Gpu {
            // SAFETY: It is stored in `VsvmData` and never forgotten.
            followers: unsafe { Followers::new(fault_irq.clone())? },
            faults: fault_irq,
            spaces,
            units,
        };
        dev_info!(
            dev,
            "{} MiB of VRAM for programs\n",
            gpu.units.memory.size() >> 20
        );
        let data = Ok::<_, Error>(gpu.clone());
        // SAFETY: The registration is stored in `VsvmData` and never forgotten.
        let registration = unsafe { drm::Registration::new(dev, drm, data, 0)? };

        Ok(VsvmData {
            _registration: registration,
            gpu,
            _totals: totals,
            _compute_irq: compute_irq,
            _copy_irq: copy_irq,
            _vectors: vectors,
        })
    }

    fn unbind<'bound>(_pdev: &'bound pci::Device<Core<'_>>, this: Pin<&VsvmData<'bound>>) {
        this.gpu.spaces.close_all();
    }

    fn reset_prepare<'bound>(_pdev: &'bound pci::Device<Core<'_>>, this: Pin<&VsvmData<'bound>>) {
        power::stop(&this.gpu);
    }

    fn reset_done<'bound>(_pdev: &'bound pci::Device<Core<'_>>, this: Pin<&VsvmData<'bound>>) {
        // Whoever uses the device will notice if it does not come back.
        let _ = power::start(&this.gpu);
    }

    fn suspend<'bound>(
        _pdev: &'bound pci::Device<Core<'_>>,
        this: Pin<&VsvmData<'bound>>,
    ) -> Result {
        power::suspend(&this.gpu)
    }

    fn resume<'bound>(
        _pdev: &'bound pci::Device<Core<'_>>,
        this: Pin<&VsvmData<'bound>>,
    ) -> Result {
        power::start(&this.gpu)
    }
}

const INFO: drm::DriverInfo = drm::DriverInfo {
    major: 1,
    minor: 0,
    patchlevel: 0,
    name: c"vsvm",
    desc: c"Virtual GPU with shared virtual memory",
};

#[vtable]
impl drm::Driver for VsvmDriver {
    type Data = ();
    type RegistrationData<'drm> = Gpu<'drm>;
    type File = File;
    type Object = gem::Object<NoObject>;
    type ParentDevice<Ctx: DeviceContext> = pci::Device<Ctx>;

    const INFO: drm::DriverInfo = INFO;
    const FEAT_RENDER: bool = true;
    const FEAT_SYNCOBJ: bool = true;

    kernel::declare_drm_ioctls! {
        (VSVM_GET_PARAM, drm_vsvm_get_param, ioctl::RENDER_ALLOW, File::get_param),
        (VSVM_SVM_ATTACH, drm_vsvm_svm_attach, ioctl::RENDER_ALLOW, File::svm_attach),
        (VSVM_MIGRATE, drm_vsvm_migrate, ioctl::RENDER_ALLOW, File::migrate),
        (VSVM_EXEC, drm_vsvm_exec, ioctl::RENDER_ALLOW, File::exec),
        (VSVM_WAIT, drm_vsvm_wait, ioctl::RENDER_ALLOW, File::wait),
    }
}

/// A GEM object, of which there are none: programs use their own memory.
#[pin_data]
pub(crate) struct NoObject {}

impl gem::DriverObject for NoObject {
    type Driver = VsvmDriver;
    type Args = ();

    fn new(_dev: &VsvmDevice, _size: usize, _args: ()) -> impl PinInit<Self, Error> {
        Err(EOPNOTSUPP)
    }
}
