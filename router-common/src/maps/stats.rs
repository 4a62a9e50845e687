//! Counters: one block for each CPU, so that counting never writes memory that another CPU writes.

use core::mem::size_of;

use crate::{
    limits::{MAX_INTERFACES, MAX_RULES},
    reason::{REASON_SLOTS, Reason},
    table::Tag,
    time::Ticks,
    tuple::Direction,
};

/// Packets and their bytes, Ethernet header included.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Counter {
    /// Counts a packet of this many bytes.
    #[inline(always)]
    pub const fn count(&mut self, bytes: u64) {
        self.packets += 1;
        self.bytes += bytes;
    }

    /// Adds what another CPU counted.
    pub const fn merge(&mut self, other: &Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// Counters of an interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct InterfaceStats {
    /// Packets that the program has received.
    pub received: Counter,
    /// Packets that the program has sent.
    pub transmitted: Counter,
}

/// Counters of a rule, except for the packets of its sessions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Decisions {
    /// Sessions opened.
    pub opened: u64,
    /// Packets dropped because their source, or the interface that they came in by, is not allowed.
    pub denied: u64,
}

/// Counters of a rule.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RuleStats {
    /// Packets from clients to the target.
    pub forward: Counter,
    /// Packets from the target to clients.
    pub reply: Counter,
    /// Sessions opened.
    pub opened: u64,
    /// Packets dropped because their source, or the interface that they came in by, is not allowed.
    pub denied: u64,
}

/// Counters of this machine's own traffic that collides with sessions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct OwnStats {
    /// Sessions that were ended in favour of this machine.
    pub sessions_ended: u64,
    /// Connections of this machine that were refused, since the session is alive.
    pub connections_refused: u64,
}

/// The time as a CPU has last read it.
///
/// Reading the kernel's coarse clock is a call. Reading its tick counter is one load, and the clock
/// moves with it. The counter is a moment ahead of the clock, so this time may be one tick of the
/// kernel old; code that needs the exact time reads the clock.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Clock {
    /// The kernel's tick counter when the clock was read.
    jiffies: u64,
    ticks: Ticks,
    zero: u32,
}

impl Clock {
    /// Returns the time, read anew if the tick counter has moved.
    #[inline(always)]
    pub fn now(&mut self, jiffies: u64, read: impl FnOnce() -> Ticks) -> Ticks {
        // The counter starts below zero (`INITIAL_JIFFIES`), and is never 0 for long.
        if self.jiffies != jiffies {
            self.ticks = read();
            self.jiffies = jiffies;
        }
        self.ticks
    }
}

/// All counters of one CPU, and its clock: one map value, so that a packet finds all of them with
/// one lookup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CpuStats {
    /// By the number of the [`Reason`].
    pub reasons: [Counter; REASON_SLOTS],
    /// By interface slot.
    pub interfaces: [InterfaceStats; MAX_INTERFACES],
    /// Packets of known sessions, by the slots of the interfaces that they came in on and left by.
    /// One counter stands for three: received, forwarded and transmitted. [`merge`](Self::merge)
    /// adds it to these, and leaves it zero in a sum.
    pub passed_on: [[Counter; MAX_INTERFACES]; MAX_INTERFACES],
    /// Packets of known sessions, by rule number and direction ([`Tag::counter`]).
    pub translated: [Counter; 2 * MAX_RULES],
    /// By rule number.
    pub decisions: [Decisions; MAX_RULES],
    /// The program's clock.
    pub clock: Clock,
    /// This machine's own traffic.
    pub own: OwnStats,
}

/// The kernel's limit for a per-CPU value (`PCPU_MIN_UNIT_SIZE`, include/linux/percpu.h).
const _: () = assert!(size_of::<CpuStats>() <= 32 << 10);
/// The program masks indexes instead of comparing them.
const _: () = assert!(
    REASON_SLOTS.is_power_of_two() && MAX_RULES.is_power_of_two() && MAX_INTERFACES.is_power_of_two()
);

impl CpuStats {
    /// All zero.
    pub const ZERO: Self = Self {
        reasons: [Counter { packets: 0, bytes: 0 }; REASON_SLOTS],
        passed_on: [[Counter { packets: 0, bytes: 0 }; MAX_INTERFACES]; MAX_INTERFACES],
        interfaces: [InterfaceStats {
            received: Counter { packets: 0, bytes: 0 },
            transmitted: Counter { packets: 0, bytes: 0 },
        }; MAX_INTERFACES],
        translated: [Counter { packets: 0, bytes: 0 }; 2 * MAX_RULES],
        decisions: [Decisions { opened: 0, denied: 0 }; MAX_RULES],
        clock: Clock { jiffies: 0, ticks: Ticks(0), zero: 0 },
        own: OwnStats { sessions_ended: 0, connections_refused: 0 },
    };

    /// Adds the counters of another CPU.
    pub fn merge(&mut self, other: &Self) {
        let Self { reasons, interfaces, passed_on: _, translated, decisions, clock: _, own } = self;
        for (sum, cpu) in reasons.iter_mut().zip(&other.reasons) {
            sum.merge(cpu);
        }
        for (sum, cpu) in interfaces.iter_mut().zip(&other.interfaces) {
            sum.received.merge(&cpu.received);
            sum.transmitted.merge(&cpu.transmitted);
        }
        for (ingress, by_egress) in other.passed_on.iter().enumerate() {
            for (egress, counter) in by_egress.iter().enumerate() {
                reasons[Reason::Forwarded as usize].merge(counter);
                interfaces[ingress].received.merge(counter);
                interfaces[egress].transmitted.merge(counter);
            }
        }
        for (sum, cpu) in translated.iter_mut().zip(&other.translated) {
            sum.merge(cpu);
        }
        for (sum, cpu) in decisions.iter_mut().zip(&other.decisions) {
            sum.opened += cpu.opened;
            sum.denied += cpu.denied;
        }
        own.sessions_ended += other.own.sessions_ended;
        own.connections_refused += other.own.connections_refused;
    }

    /// Returns the counters of the rule with this number; zeros if there is no such rule.
    #[must_use]
    pub fn rule(&self, number: u16) -> RuleStats {
        let [forward, reply] = [Direction::Forward, Direction::Reply].map(|direction| {
            self.translated.get(Tag::counter_of(number, direction)).copied().unwrap_or_default()
        });
        let Decisions { opened, denied } =
            self.decisions.get(usize::from(number)).copied().unwrap_or_default();
        RuleStats { forward, reply, opened, denied }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_read_when_the_tick_counter_has_moved() {
        let mut clock = Clock::default();
        assert_eq!(clock.now(0xffff_ffff, || Ticks(7)), Ticks(7));
        assert_eq!(clock.now(0xffff_ffff, || unreachable!()), Ticks(7));
        assert_eq!(clock.now(0x1_0000_0000, || Ticks(8)), Ticks(8));
        assert_eq!(clock.now(0xffff_ffff, || Ticks(9)), Ticks(9));
    }

    #[test]
    fn packets_passed_on_count_as_received_and_transmitted() {
        let mut cpu = CpuStats::ZERO;
        cpu.passed_on[0][1].count(60);
        cpu.passed_on[1][0].count(100);
        cpu.interfaces[0].received.count(60);
        cpu.reasons[Reason::NotIpv4 as usize].count(60);
        let mut sum = CpuStats::ZERO;
        sum.merge(&cpu);
        sum.merge(&cpu);
        assert_eq!(sum.interfaces[0].received, Counter { packets: 4, bytes: 240 });
        assert_eq!(sum.interfaces[0].transmitted, Counter { packets: 2, bytes: 200 });
        assert_eq!(sum.interfaces[1].transmitted, Counter { packets: 2, bytes: 120 });
        assert_eq!(sum.reasons[Reason::Forwarded as usize], Counter { packets: 4, bytes: 320 });
        assert_eq!(sum.passed_on, CpuStats::ZERO.passed_on);
    }
}
