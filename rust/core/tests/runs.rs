// SPDX-License-Identifier: GPL-2.0-only

//! Which runs are acceptable on their own, and the bitmap.

use vmbeam_core::{
    marks,
    pairs,
    uapi, //
};

#[test]
fn bad_runs() {
    let validate = |gfn_a, gfn_b, nr, reserved| {
        pairs::validate(&uapi::Run {
            gfn_a,
            gfn_b,
            nr,
            reserved,
        })
    };

    assert_eq!(validate(1, 2, 3, 0), Ok(()));
    assert_eq!(validate(1, 2, 0, 0), Err(pairs::BadRun::Invalid));
    assert_eq!(validate(1, 2, 3, 1), Err(pairs::BadRun::Invalid));
    assert_eq!(validate(pairs::GFN_LIMIT - 3, 2, 3, 0), Ok(()));
    assert_eq!(
        validate(pairs::GFN_LIMIT - 2, 2, 3, 0),
        Err(pairs::BadRun::Overflow)
    );
    assert_eq!(validate(2, u64::MAX, 1, 0), Err(pairs::BadRun::Overflow));
}

#[test]
fn marks_are_one_bit_a_pair() {
    let mut words = [0; 2];

    assert_eq!(
        (marks::words(0), marks::words(64), marks::words(65)),
        (0, 1, 2)
    );
    for pair in [0, 63, 64, 127] {
        marks::set(&mut words, pair);
    }
    // Beyond the memory: nothing happens.
    marks::set(&mut words, 128);
    assert_eq!(words, [1 | (1 << 63); 2]);
    assert!(marks::is_set(&words, 63) && !marks::is_set(&words, 62));
    assert!(!marks::is_set(&words, 128));
}
