//! The one place that names a backend: `--device` to a burn device.

use burn::tensor::Device;

/// Devices this binary was compiled for, by the name `--device` takes.
pub fn available() -> Vec<&'static str> {
    let mut names = Vec::new();
    if cfg!(feature = "flex") {
        names.push("flex");
    }
    if cfg!(feature = "ndarray") {
        names.push("ndarray");
    }
    if cfg!(feature = "cpu") {
        names.push("cpu");
    }
    if cfg!(feature = "wgpu") {
        names.push("wgpu");
    }
    if cfg!(feature = "cuda") {
        names.push("cuda");
    }
    names
}

/// The device of that name.
///
/// # Errors
///
/// A usage error that lists the devices of this binary and says how to get another.
pub fn open(name: &str) -> Result<Device, crate::UsageError> {
    match name {
        #[cfg(feature = "flex")]
        "flex" => Ok(Device::flex()),
        #[cfg(feature = "ndarray")]
        "ndarray" => Ok(Device::ndarray()),
        #[cfg(feature = "cpu")]
        "cpu" => Ok(Device::cpu()),
        #[cfg(feature = "wgpu")]
        "wgpu" => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "cuda")]
        "cuda" => {
            if !std::path::Path::new("/proc/driver/nvidia/version").exists() {
                return Err(crate::UsageError(
                    "no NVIDIA driver answers on this machine: use `--device flex`".into(),
                ));
            }
            Ok(Device::cuda(0))
        }
        _ => Err(crate::UsageError(format!(
            "device `{name}` is not in this binary, which has {}: choose one of them, or build \
             with `--features {name}` (`cargo xtask` does that for `--device`)",
            available().join(", ")
        ))),
    }
}
