//! The sizes of the programs, as the kernel reports them once they are loaded, and the helpers that
//! they call.

use std::collections::HashSet;

use anyhow::{Context, Result};
use aya_obj::{Object, generated::bpf_insn};
use router_common::maps::stages::Stage;
use router_user::dataplane::{self, Dataplane};
use serde::Serialize;

use crate::bench::spread::line;

/// `BPF_JMP | BPF_CALL`, include/uapi/linux/bpf.h.
const CALL: u8 = 0x85;
/// The source register of a call to a helper of the kernel's list (`enum bpf_func_id`).
const HELPER: u8 = 0;
/// `BPF_FUNC_map_lookup_elem`.
const MAP_LOOKUP_ELEM: i32 = 1;

/// A program's size.
#[derive(Debug, Serialize)]
pub(crate) struct Size {
    program: &'static str,
    /// Instructions as the kernel translated them, with what it has put in place of calls.
    instructions: Option<u32>,
    /// Bytes of machine code; 0 where the kernel does not compile.
    jited_bytes: u32,
    /// Instructions that the verifier walked through when it was loaded, along all branches.
    verified_instructions: Option<u32>,
    /// Places in the code that look something up in a map. A packet passes some of them.
    map_lookups: usize,
    /// Places in the code that call a helper of the kernel, look-ups included.
    helper_calls: usize,
}

/// Every program, in the order in which a packet comes to them.
pub(crate) fn all(dataplane: &mut Dataplane) -> Result<Vec<Size>> {
    let mut object = Object::parse(dataplane::object()).context("cannot read the router's object")?;
    // Puts the functions that a program calls after it, as they are loaded.
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).context("cannot link the router's programs")?;
    let stages = Stage::ALL.into_iter().map(|(_, name)| name);
    ["pls_router", "forward"].into_iter().chain(stages).map(|name| one(dataplane, &object, name)).collect()
}

fn one(dataplane: &mut Dataplane, object: &Object, program: &'static str) -> Result<Size> {
    let info = dataplane.program(program)?.info().with_context(|| format!("cannot examine {program}"))?;
    let code = object.programs.get(program).and_then(|found| object.functions.get(&found.function_key()));
    let code = &code.with_context(|| format!("the router's object has no program {program}"))?.instructions;
    Ok(Size {
        program,
        instructions: info.size_translated().map(|bytes| bytes / size_of::<bpf_insn>() as u32),
        jited_bytes: info.size_jitted(),
        verified_instructions: info.verified_instruction_count(),
        map_lookups: helpers(code).filter(|helper| *helper == MAP_LOOKUP_ELEM).count(),
        helper_calls: helpers(code).count(),
    })
}

/// The helpers that are called in some code, a number a call.
fn helpers(code: &[bpf_insn]) -> impl Iterator<Item = i32> {
    code.iter()
        .filter(|instruction| instruction.code == CALL && instruction.src_reg() == HELPER)
        .map(|instruction| instruction.imm)
}

/// The table of sizes.
pub(super) fn table(sizes: &[Size]) -> String {
    let mut text = format!(
        "\n\
         How large they are. Look-ups and calls are places in the code; a packet of a known session passes three look-ups where its\n\
         flow is in the first pair of slots of its chain (settings, counters, pair), and one more for each pair further on, in `forward`.\n\n\
         \x20 {:<12} {:>12} {:>12} {:>22} {:>9} {:>13}\n",
        "program", "instructions", "jited bytes", "verified instructions", "look-ups", "helper calls"
    );
    let number = |number: Option<u32>| number.map_or("-".to_owned(), |number| number.to_string());
    for size in sizes {
        line(
            &mut text,
            format_args!(
                "  {:<12} {:>12} {:>12} {:>22} {:>9} {:>13}",
                size.program,
                number(size.instructions),
                size.jited_bytes,
                number(size.verified_instructions),
                size.map_lookups,
                size.helper_calls
            ),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_are_told_from_other_calls() {
        let instruction = |code, imm| bpf_insn {
            code,
            _bitfield_align_1: [],
            _bitfield_1: bpf_insn::new_bitfield_1(0, 0),
            off: 0,
            imm,
        };
        let call = |source: u8, imm: i32| {
            let mut instruction = instruction(CALL, imm);
            instruction.set_src_reg(source);
            instruction
        };
        // 1: a function of the program's own (BPF_PSEUDO_CALL).
        let code = [call(0, 1), call(1, 1), instruction(0, 0), call(0, 160)];
        assert_eq!(helpers(&code).collect::<Vec<_>>(), [1, 160]);
    }
}
