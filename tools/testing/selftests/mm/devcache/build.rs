// SPDX-License-Identifier: GPL-2.0
//! Generates the Rust view of the driver's uAPI from its C header, so that the types exist once.
//!
//! The `bindgen` program is used rather than the crate: the kernel's own build needs it anyway.

use std::env;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

/// From this crate's folder to the root of the tree.
const ROOT: &str = "../../../../..";

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo")).join("vsvm_drm.rs");
    let header = here.join(ROOT).join("include/uapi/drm/vsvm_drm.h");

    println!("cargo::rerun-if-changed={}", header.display());
    generate(&header, &out);
}

/// Runs bindgen on `header`; drm.h comes from the header's own folder or from the installed headers.
fn generate(header: &Path, out: &Path) {
    let status = Command::new("bindgen")
        .arg(header)
        .arg("--output")
        .arg(out)
        .args(["--allowlist-item", "drm_vsvm_.*"])
        .args(["--allowlist-item", "DRM_(IOCTL_)?VSVM_.*"])
        .args(["--allowlist-item", "DRM_SYNCOBJ_.*|drm_syncobj_.*"])
        .args(["--allowlist-item", "drm_mode_create_dumb|drm_prime_handle"])
        .args(["--no-prepend-enum-name", "--with-derive-default"])
        .args(["--", "-I/usr/include/drm", "-D__user="])
        .status()
        .expect("the program bindgen is needed to build this crate");

    assert!(status.success(), "bindgen failed on {}", header.display());
}
