//! The names of `cubecl-llvm` that `cubecl-cuda` 0.11.3 refers to, without LLVM.
//!
//! With its feature `cpp`, `cubecl-cuda` hands CUDA C++ to NVRTC and only names these types. Compiling
//! through them all the same is an error that says so.

use core::convert::Infallible;
use core::fmt;

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_runtime::compiler::{CompilationError, Compiler};
use cubecl_runtime::kernel::BufferIOAttr;

/// Properties of NVIDIA's intermediate code.
pub mod nvptx {
    /// Its version.
    pub mod ptx_version {
        use core::fmt;

        /// A version; there is none without LLVM.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct PtxVersion(core::convert::Infallible);

        impl PtxVersion {
            /// None: NVRTC writes that of its own toolkit.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {}
            }
        }
    }
}

/// What the runtimes share.
pub mod shared {
    /// Features of a device that LLVM can compile for.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// A target of LLVM.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA's intermediate code.
            Nvptx,
        }

        /// Leaves the properties as they are: NVRTC compiles for all of them.
        pub fn restrict_features(_: &mut DeviceProperties, _: GpuTarget) {}
    }
}

/// A target of LLVM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// NVIDIA's intermediate code.
    #[default]
    Nvptx,
}

/// The compiler that is not there.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// What it would compile for.
    pub target: LlvmTarget,
}

/// Its options.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// Never one.
    pub arch: Option<Infallible>,
    /// The device.
    pub sm_arch: Option<SmArch>,
    /// The version of the intermediate code.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Whether scalars are passed as parameters.
    pub grid_constants: bool,
}

/// A compiled kernel; there is none.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// Intermediate code, closed by a NUL.
    pub ptx: Vec<core::ffi::c_char>,
    /// Its entry.
    pub entrypoint: String,
    /// Its source.
    pub ir: String,
    /// Bytes of shared memory.
    pub shared_memory_size: usize,
    /// How its buffers are used.
    pub io: Vec<BufferIOAttr>,
}

/// What the compiler makes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PlironArtifact {
    /// Intermediate code.
    NvptxCode(NvptxModule),
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::NvptxCode(module) = self;
        f.write_str(&module.ir)
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _: KernelDefinition,
        _: &Self::CompilationOptions,
    ) -> Result<Self::Representation, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this program was built without LLVM, for NVRTC alone: build it with the \
                     feature `cuda` outside `cargo xtask` to have both"
                .into(),
            backtrace: cubecl_environment::backtrace::BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
