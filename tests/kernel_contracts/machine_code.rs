//! Reading machine code, on a few lines of it.

use crate::sass::{Format, functions, in_flight};
use std::collections::BTreeMap;

#[test]
fn loads_are_under_way_until_their_first_reader() {
    let body = [
        "LDG.E.NA.128.CONSTANT R4, desc[UR6][R20.64]",
        "LDG.E.64 R8, desc[UR6][R22.64]",
        "HMMA.16816.F32.BF16 R32, R5, R40, RZ",
        "IADD3 R50, R9, 0x1, RZ",
    ];
    // `R5` is read as R5..R9: both loads.
    assert_eq!(in_flight(&body), 24);
    assert_eq!(in_flight(&["LDG.E R4, [R2.64]", "IADD3 R1, R4, R3, RZ"]), 4);
    assert_eq!(in_flight(&["LDG.E R4, [R2.64]", "IADD3 R4, R3, R3, RZ"]), 0);
}

#[test]
fn a_loop_is_found_by_the_branch_back_and_its_format_by_its_constants() {
    let text = "\n.text.k:\n        /*0000*/                   MOV R1, R2 ;\n.L_x_1:\n\
                \x20       /*0010*/              @!P0 LDG.E.128 R4, [R2.64] ;\n\
                \x20       /*0020*/                   HFMA2.BF16_V2 R4, R4, R3, -128, -128 ;\n\
                \x20       /*0030*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;\n\
                \x20       /*0040*/               @P0 BRA `(.L_x_1) ;\n\
                \x20       /*0050*/                   EXIT ;\n";
    let code = functions(text).remove("k").expect("a function");
    assert_eq!(code.in_flight_bytes, BTreeMap::from([(Format::Q4_K, 16)]));
    assert_eq!((code.wide_loads, code.mmas, code.local), (1, 1, 0));
}
