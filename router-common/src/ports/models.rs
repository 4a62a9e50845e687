//! Models of the port pools, like those of the flow table, see `table::models`. A slot stands for
//! the table: its tag says whether the port is taken.

use loom::{model::Builder, sync::Arc, thread};

use super::*;
use crate::{
    entry::FlowEntry,
    shared::model::order_nothing,
    table::{Slot, SlotState, Tag},
    time::Ticks,
    tuple::{Direction, Protocol},
};

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

const PORT: u16 = 40;

fn pool() -> Pool {
    Pool {
        used: AtomicU32::default(),
        frees: AtomicU32::default(),
        exhausted: core::array::from_fn(|_| AtomicU32::default()),
        zero: [0; 6],
        bits: core::array::from_fn(|_| AtomicU64::default()),
    }
}

fn reply() -> FlowKey {
    FlowKey::new(Protocol::Tcp, Ipv4([192, 0, 2, 1]), Port::new(443), Ipv4([192, 0, 2, 2]), Port::new(PORT))
}

/// The port of a session, and its target's pool.
struct Target {
    flow: Slot,
    pool: Pool,
}

impl Target {
    /// Creates a port that a session has taken before there was a pool.
    fn new() -> Self {
        let tag = Tag::pending(reply().protocol_number(), Direction::Reply, 7, false);
        let flow = Slot::default();
        flow.write(&reply(), tag, &FlowEntry::default());
        flow.publish(tag);
        Self { flow, pool: pool() }
    }

    fn retire(&self) {
        assert!(self.flow.retire(&reply(), Ticks(9)).is_some(), "no other thread retires it");
    }

    /// Gives the port back, if there is a pool.
    fn unmark(&self) {
        if self.pool.is_used() {
            self.pool.clear(PORT);
        }
    }
}

/// A session ends, while another CPU makes a pool for its target and tries the same port, which is
/// taken or just not any more: no mark stays without a flow.
fn one_ends_and_one_tries(end: fn(&Target), look_again: bool) {
    check(move || {
        let target = Arc::new(Target::new());
        let other = {
            let target = Arc::clone(&target);
            thread::spawn(move || end(&target))
        };
        assert!(target.pool.claim());
        let is_marked = target.pool.take(PORT);
        // This fails if the port is still taken. If it is not, this may fail as well, since another
        // CPU was at work in the same place.
        let is_taken = || target.flow.tag().state() == SlotState::Live;
        if is_marked && look_again && !is_taken() {
            target.pool.clear(PORT);
        }
        other.join().expect("a thread");
        assert_eq!(target.pool.taken(), 0, "the port is lost");
    });
}

fn end(target: &Target) {
    target.retire();
    target.unmark();
}

#[test]
fn no_port_is_lost() {
    one_ends_and_one_tries(end, true);
}

#[test]
#[should_panic(expected = "the port is lost")]
fn without_the_second_look_a_port_is_lost() {
    one_ends_and_one_tries(end, false);
}

#[test]
#[should_panic(expected = "the port is lost")]
fn a_bit_cleared_before_the_flow_is_gone_stays_set() {
    one_ends_and_one_tries(
        |target| {
            target.unmark();
            target.retire();
        },
        true,
    );
}

#[test]
#[should_panic(expected = "the port is lost")]
fn without_barriers_a_port_is_lost() {
    order_nothing();
    one_ends_and_one_tries(end, true);
}

fn ports() -> SourcePorts {
    SourcePorts::new(PortRange { first: PORT, last: PORT + 1 }, 0)
}

/// Two CPUs take a port each, of two.
fn two_take(take: fn(&Pool) -> Take) {
    check(move || {
        let pool = Arc::new(pool());
        let other = {
            let pool = Arc::clone(&pool);
            thread::spawn(move || take(&pool))
        };
        let own = take(&pool);
        let other = other.join().expect("a thread");
        assert!(matches!(own, Take::Port(_)) || matches!(other, Take::Port(_)), "no port was taken");
        assert!(own != other, "given twice");
        let given = [own, other].into_iter().filter(|take| matches!(take, Take::Port(_))).count();
        assert_eq!(pool.taken() as usize, given);
    });
}

#[test]
fn no_port_is_given_twice() {
    two_take(|pool| pool.take_from(0, &ports(), 7));
}

/// Mutation: the bit is not checked again after it was set.
#[test]
#[should_panic(expected = "given twice")]
fn without_the_old_bit_a_port_is_given_twice() {
    two_take(|pool| {
        let free = !pool.bits(0).load() & ports().range().in_word(0);
        let port = free.trailing_zeros();
        pool.bits(0).or(1 << port);
        Take::Port(port as u16)
    });
}

/// A target has one pool in the end, and no other target has the same pool.
#[test]
fn a_target_gets_one_pool() {
    check(|| {
        let pool = Arc::new(pool());
        let other = {
            let pool = Arc::clone(&pool);
            thread::spawn(move || pool.claim())
        };
        assert!(pool.claim() != other.join().expect("a thread"));
    });
}

/// A port is freed while a search finds all ports taken: the pool does not stay marked as
/// exhausted.
fn one_frees_and_one_searches(free: fn(&Pool), asks_first: bool) {
    check(move || {
        let pool = Arc::new(pool());
        pool.set(PORT);
        pool.set(PORT + 1);
        let other = {
            let pool = Arc::clone(&pool);
            thread::spawn(move || free(&pool))
        };
        let before = pool.frees();
        if pool.take_from(0, &ports(), 7) == Take::AllTaken {
            pool.set_exhausted(if asks_first { before } else { pool.frees() }, &ports());
        }
        other.join().expect("a thread");
        assert!(pool.taken() == 2 || !pool.is_exhausted(&ports()), "the freed port is hidden");
    });
}

#[test]
fn a_freed_port_is_found() {
    one_frees_and_one_searches(|pool| pool.clear(PORT), true);
}

#[test]
#[should_panic(expected = "the freed port is hidden")]
fn a_count_read_after_the_search_hides_a_port() {
    one_frees_and_one_searches(|pool| pool.clear(PORT), false);
}

#[test]
#[should_panic(expected = "the freed port is hidden")]
fn a_count_raised_before_the_port_is_free_hides_it() {
    one_frees_and_one_searches(
        |pool| {
            pool.frees.add(1);
            pool.bits(0).and(!(1 << PORT));
        },
        true,
    );
}
