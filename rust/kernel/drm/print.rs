// SPDX-License-Identifier: GPL-2.0 OR MIT

//! DRM printers.
//!
//! A printer is where the DRM core wants a text to go: a `seq_file`, the kernel log, a core dump.
//!
//! C header: [`include/drm/drm_print.h`](srctree/include/drm/drm_print.h)

use crate::{
    bindings,
    fmt,
    prelude::*,
    types::Opaque, //
};

/// A destination for text, lent to a callback of a driver.
///
/// # Examples
///
/// ```
/// use kernel::{
///     drm::Printer,
///     prelude::fmt, //
/// };
///
/// fn show(printer: &Printer, faults: u64) {
///     printer.print(fmt!("example-faults:\t{faults}\n"));
/// }
/// ```
///
/// # Invariants
///
/// `self.0` is a valid instance of a `struct drm_printer`.
#[repr(transparent)]
pub struct Printer(Opaque<bindings::drm_printer>);

impl Printer {
    /// Creates a reference to a printer from a raw pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must point to a valid `struct drm_printer` for the duration of `'a`, and must not be
    /// used by another task during that time.
    pub(crate) unsafe fn from_raw<'a>(ptr: *mut bindings::drm_printer) -> &'a Self {
        // INVARIANT: The caller promises that the printer is valid.
        //
        // SAFETY: `Self` is a transparent wrapper, and the caller promises validity for `'a`.
        unsafe { &*ptr.cast() }
    }

    /// Prints formatted text.
    pub fn print(&self, args: fmt::Arguments<'_>) {
        // SAFETY: The printer is valid by the type invariant. `%pA` consumes one pointer to
        // `fmt::Arguments`, which is what it gets.
        unsafe {
            bindings::drm_printf(
                self.0.get(),
                c"%pA".as_char_ptr(),
                core::ptr::from_ref(&args).cast::<c_void>(),
            )
        };
    }
}
