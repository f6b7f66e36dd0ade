//! The device of the whole test suite, chosen in one place.

use burn::tensor::Device;

/// Name of the environment variable that chooses the device.
pub const DEVICE_VAR: &str = "SDLORA_TEST_DEVICE";

/// Names accepted in `SDLORA_TEST_DEVICE` by this build.
const COMPILED: &[&str] = &[
    "flex",
    #[cfg(feature = "ndarray")]
    "ndarray",
    #[cfg(feature = "cpu")]
    "cpu",
    #[cfg(feature = "wgpu")]
    "wgpu",
    #[cfg(feature = "cuda")]
    "cuda",
];

/// Device on which all tests run: the one named by `SDLORA_TEST_DEVICE`, `flex` if the variable is unset or empty.
///
/// # Panics
///
/// If the variable names a device that this build does not contain.
#[track_caller]
pub fn test_device() -> Device {
    device_named(std::env::var(DEVICE_VAR).ok().as_deref())
}

/// [`test_device`] with automatic differentiation.
///
/// # Panics
///
/// As [`test_device`].
#[track_caller]
pub fn test_device_autodiff() -> Device {
    test_device().autodiff()
}

#[track_caller]
fn device_named(name: Option<&str>) -> Device {
    match name.map(str::trim) {
        None | Some("" | "flex") => Device::flex(),
        #[cfg(feature = "ndarray")]
        #[allow(deprecated, reason = "a backend of the project's charter")]
        Some("ndarray") => Device::ndarray(),
        #[cfg(feature = "cpu")]
        Some("cpu") => Device::cpu(),
        #[cfg(feature = "wgpu")]
        Some("wgpu") => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        Some("cuda") => Device::cuda(0),
        Some(other) => panic!(
            "{DEVICE_VAR}=`{other}` is not compiled into the tests: use one of {COMPILED:?}, or enable its feature \
             of sdlora-testkit as `cargo xtask golden --device` does"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flex_is_the_default() {
        assert_eq!(device_named(None), Device::flex());
        assert_eq!(device_named(Some("")), Device::flex());
        assert_eq!(device_named(Some("flex")), Device::flex());
        assert!(test_device_autodiff().is_autodiff());
        assert!(!test_device().is_autodiff());
    }

    #[test]
    #[should_panic(expected = "SDLORA_TEST_DEVICE=`abacus` is not compiled")]
    fn an_unknown_device_is_named_in_the_message() {
        device_named(Some("abacus"));
    }
}
