// SPDX-License-Identifier: GPL-2.0
//! The driver's uAPI, generated from `include/uapi/drm/vsvm_drm.h` by the build script, and what
//! the tests use of the one that all DRM drivers have.

#![allow(non_camel_case_types)]
#![allow(non_upper_case_globals)]
#![allow(unreachable_pub)]
#![allow(missing_docs)]

include!(concat!(env!("OUT_DIR"), "/vsvm_drm.rs"));
