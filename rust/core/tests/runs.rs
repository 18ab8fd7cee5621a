// SPDX-License-Identifier: GPL-2.0-only

//! Which runs are acceptable on their own.

use vmbeam_core::{
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
