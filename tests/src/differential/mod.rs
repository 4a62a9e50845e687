//! The same packets through pls-router and through the kernel's own NAT: what comes out has to be
//! the same.
//!
//! Each sequence is made from a seed and sent step by step into two routers with the same addresses
//! and rules: the kernel with nftables (the *oracle*), and pls-router. The ends of their wires are
//! packet sockets, so every byte that a router sends is seen. Hundreds of sequences run at the same
//! time. Each has separate addresses and ports, which it may use for one connection after another
//! while rules change and time goes by (`life`). Fields that may differ are removed (`observe`),
//! deliberate differences are declared (`differences`), and everything else is a failure, which is
//! then reduced to a small one.

mod category;
mod compare;
mod differences;
mod generate;
mod life;
mod maker;
mod observe;
mod pace;
mod plan;
mod rig;
mod run;
mod show;
mod spice;
mod talk;
mod topology;
mod track;

#[cfg(test)]
mod tests;

pub use run::{Mode, Options, run};
