//! The life of the daemon.
//!
//! - `start`: from a configuration to an instance that forwards. `waiting`: for its interfaces.
//! - `running`: what a running daemon is asked for, and how it ends, hands over, or is replaced.
//! - `instance`: a configuration with its data plane and its services. `loading`: its programs.
//!   `succession`: of a data plane with another table.
//! - `hand_over`: from and to another process. `replacement`: requests for another instance.
//! - `listeners`, `onlookers`, `descriptors`, `privileges`, `signals`: what the process has.

mod onlookers;

pub(crate) mod descriptors;
pub(crate) mod hand_over;
pub(crate) mod instance;
pub(crate) mod listeners;
pub(crate) mod loading;
pub(crate) mod privileges;
pub(crate) mod replacement;
pub(crate) mod running;
pub(crate) mod signals;
pub(crate) mod start;
pub(crate) mod succession;
pub(crate) mod waiting;
pub(crate) mod watchdog;
