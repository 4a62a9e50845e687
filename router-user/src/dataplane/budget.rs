//! The cost of an established session's packet, by the program's instructions and not by a clock:
//! `docs/performance.md` has the times.

use std::collections::BTreeSet;

use aya_obj::{Object, generated::bpf_insn};
use router_common::table::{BUCKET, REACH};

/// `BPF_JMP | BPF_CALL`, include/uapi/linux/bpf.h.
const CALL: u8 = 0x85;
/// The source register of a call to a helper of the kernel (`enum bpf_func_id`).
const HELPER: u8 = 0;

const MAP_LOOKUP_ELEM: i32 = 1;
const TAIL_CALL: i32 = 12;
const REDIRECT_MAP: i32 = 51;
const JIFFIES64: i32 = 118;
const KTIME_GET_COARSE_NS: i32 = 160;

/// The instructions of `forward`, as the compiler made them.
fn forward() -> Vec<bpf_insn> {
    let object = Object::parse(super::object::OBJECT).expect("the object is one");
    let program = object.programs.get("forward").expect("there is such a program");
    object.functions.get(&program.function_key()).expect("it has instructions").instructions.clone()
}

fn calls(instructions: &[bpf_insn]) -> impl Iterator<Item = &bpf_insn> {
    instructions.iter().filter(|instruction| instruction.code == CALL)
}

/// Look-ups in arrays, which the kernel turns into a few instructions each; the tick counter, which
/// it turns into a load, and its clock; the next program or interface. Nothing else, and
/// above all no route, no hash table, and nothing that is written for others to read.
#[test]
fn forward_calls_nothing_else() {
    let instructions = forward();
    assert!(calls(&instructions).all(|call| call.src_reg() == HELPER), "all of it is in one function");
    let helpers: BTreeSet<i32> = calls(&instructions).map(|call| call.imm).collect();
    assert_eq!(
        helpers,
        BTreeSet::from([MAP_LOOKUP_ELEM, TAIL_CALL, REDIRECT_MAP, JIFFIES64, KTIME_GET_COARSE_NS])
    );
}

/// Counters and settings, one each; and a flow in one of two regions, in the first buckets of its
/// chain: one look-up where it is in the first.
#[test]
fn forward_looks_up_few_things() {
    let lookups = calls(&forward()).filter(|call| call.imm == MAP_LOOKUP_ELEM).count();
    let regions = 2;
    assert!(lookups <= 2 + regions * (REACH / BUCKET) as usize, "{lookups} look-ups");
}

/// The length that the compiler gives it. Less is better; more is to be measured first.
#[test]
fn forward_is_short() {
    const LIMIT: usize = 560;
    let length = forward().len();
    assert!(length <= LIMIT, "{length} instructions");
}
