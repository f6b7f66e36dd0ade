//! The one place that names a backend: `--device` to a burn device.

use burn::tensor::Device;
#[cfg(any(feature = "cpu", feature = "wgpu", feature = "cuda"))]
use burn::tensor::DeviceType;

use crate::UsageError;

/// Every backend there is a feature for, in the order they are listed.
const BACKENDS: [&str; 5] = ["flex", "ndarray", "cpu", "wgpu", "cuda"];

/// The device of that name: a backend, and for several of one kind a colon and their index, `cuda:1`.
///
/// # Errors
///
/// A usage error that lists the devices this binary finds on this machine, for a backend that is not
/// compiled in, one without a device here, and an index too high.
pub fn open(name: &str) -> Result<Device, UsageError> {
    let (backend, index) = match name.split_once(':') {
        None => (name, None),
        Some((backend, index)) => match index.parse::<usize>() {
            Ok(index) => (backend, Some(index)),
            Err(_) => {
                return Err(UsageError(format!(
                    "device `{name}` has no number after the colon: write for instance `{backend}:0`"
                )));
            }
        },
    };
    let Some(found) = devices_of(backend) else {
        let advice = match BACKENDS.contains(&backend) {
            true => format!(
                ", or install sdlora with it: `cargo install --locked --path crates/sdlora-cli \
                 --features {backend}`"
            ),
            false => String::new(),
        };
        return Err(UsageError(format!(
            "device `{name}` is not in this binary: choose one of {}{advice}",
            on_this_machine().join(", ")
        )));
    };
    let n_found = found.len();
    // Without an index the backend's own choice, where it has one.
    let chosen = match index {
        None => default_of(backend).filter(|_| n_found > 0),
        Some(index) => found.into_iter().nth(index),
    };
    chosen.ok_or_else(|| {
        let problem = match n_found {
            0 => "no driver with such a device answers on this machine".to_owned(),
            1 => "this machine has one, number 0".to_owned(),
            n => format!("this machine has {n}, numbers 0 to {}", n - 1),
        };
        UsageError(format!(
            "there is no device `{name}`: {problem}; choose one of {}",
            on_this_machine().join(", ")
        ))
    })
}

/// Devices that share a run, with the names they were asked for by.
#[derive(Debug)]
pub struct Devices {
    /// As in `--devices`, between commas.
    pub names: String,
    /// In the same order.
    pub opened: Vec<Device>,
}

impl Devices {
    /// Opens each of them.
    ///
    /// # Errors
    ///
    /// Those of [`open`].
    pub fn open(names: &[String]) -> Result<Self, UsageError> {
        Ok(Self {
            names: names.join(","),
            opened: names
                .iter()
                .map(|name| open(name))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The devices that can be opened here, by the names `--device` takes.
fn on_this_machine() -> Vec<String> {
    let mut names = Vec::new();
    for backend in BACKENDS {
        match devices_of(backend).map(|found| found.len()) {
            None | Some(0) => {}
            Some(1) => names.push(backend.to_owned()),
            Some(n) => names.extend((0..n).map(|index| format!("{backend}:{index}"))),
        }
    }
    names
}

/// The devices of a backend on this machine; `None` where it is not compiled in.
fn devices_of(backend: &str) -> Option<Vec<Device>> {
    match backend {
        #[cfg(feature = "flex")]
        "flex" => Some(vec![Device::flex()]),
        #[cfg(feature = "ndarray")]
        "ndarray" => default_of(backend).map(|device| vec![device]),
        #[cfg(feature = "cpu")]
        "cpu" => Some(answering(DeviceType::Cpu)),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(answering(DeviceType::Wgpu)),
        #[cfg(feature = "cuda")]
        "cuda" => Some(answering(DeviceType::Cuda)),
        _ => None,
    }
}

/// The device of a backend when no index is given; it is not known to be there.
fn default_of(backend: &str) -> Option<Device> {
    match backend {
        #[cfg(feature = "flex")]
        "flex" => Some(Device::flex()),
        #[cfg(feature = "ndarray")]
        #[allow(deprecated, reason = "a backend of the project's charter")]
        "ndarray" => Some(Device::ndarray()),
        #[cfg(feature = "cpu")]
        "cpu" => Some(Device::cpu()),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "cuda")]
        "cuda" => Some(Device::cuda(0)),
        _ => None,
    }
}

/// The devices of a kind that their drivers answer for. Drivers are other people's code: one that
/// panics while it is asked has no devices.
#[cfg(any(feature = "cpu", feature = "wgpu", feature = "cuda"))]
fn answering(kind: DeviceType) -> Vec<Device> {
    std::panic::catch_unwind(|| Device::enumerate(kind).into_iter().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_with_one_device_may_be_named_with_its_number() {
        assert_eq!(open("flex").unwrap(), open("flex:0").unwrap());
        let error = open("flex:1").unwrap_err().to_string();
        assert!(error.contains("has one, number 0") && error.contains("choose one of flex"));
    }

    #[test]
    fn what_is_wrong_with_a_name_is_said_with_the_devices_there_are() {
        for (name, part) in [
            ("tpu", "`tpu` is not in this binary: choose one of flex"),
            ("flex:first", "no number after the colon"),
            ("flex:", "no number after the colon"),
            ("flex:-1", "no number after the colon"),
            ("", "is not in this binary"),
        ] {
            let error = open(name).unwrap_err().to_string();
            assert!(error.contains(part), "{name}: {error}");
        }
        let unknown = open("tpu").unwrap_err().to_string();
        assert!(!unknown.contains("--features"), "{unknown}");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_backend_that_was_not_compiled_says_how_to_get_it() {
        let error = open("cuda:1").unwrap_err().to_string();
        assert!(
            error.contains("crates/sdlora-cli --features cuda`"),
            "{error}"
        );
    }
}
