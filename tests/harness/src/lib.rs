//! The harness of the tests that need more of a machine than a compiler: root, network namespaces,
//! other people's programs.
//!
//! The compiler's own harness only knows tests that pass and tests that fail, so a test that cannot
//! run on this machine has to claim one of the two. Here such a test is ignored, with the reason.
//! The lack may show before all tests ([`main`]) or within one ([`skip`], [`check`]). A test binary
//! uses this harness by `harness = false` in its Cargo.toml, and at the top of its `main.rs`:
//!
//! ```text
//! // Its `#[test]` takes the place of the compiler's in the whole crate.
//! #[macro_use]
//! extern crate harness;
//!
//! fn main() -> std::process::ExitCode {
//!     harness::main(harness::no_root("network namespaces need root"))
//! }
//! ```
//!
//! Arguments are those of the compiler's harness, by [`libtest_mimic`]. Each test runs in a
//! separate process: its output is shown if it fails, and no test can affect the process of
//! another.

pub mod guides;
pub mod packages;

#[cfg(feature = "runner")]
mod runner;
#[cfg(feature = "runner")]
mod times;

#[cfg(feature = "runner")]
pub use self::runner::{check, exit_code, main, no_root, skip};

#[cfg(feature = "runner")]
pub use harness_macros::test;

/// Items that the macros use.
#[cfg(feature = "runner")]
#[doc(hidden)]
pub mod private {
    pub use super::runner::Test;
    pub use inventory;
}

/// Registers a function as a test. [`test`] does this.
#[cfg(feature = "runner")]
#[doc(hidden)]
#[macro_export]
macro_rules! register {
    ($function:ident $(, $ignored:literal)?) => {
        $crate::private::inventory::submit! {
            $crate::private::Test {
                module: ::core::module_path!(),
                function: ::core::stringify!($function),
                ignored: &[$($ignored)?],
                body: || $crate::exit_code($function()),
            }
        }
    };
}
