// SPDX-License-Identifier: GPL-2.0-only

//! Values as a person reads them.

/// Few digits, without an exponent where that is readable.
pub fn short(value: &f64) -> String {
    let v = value.abs();
    match v {
        _ if v == 0.0 => "0".into(),
        _ if !(1e-4..1e6).contains(&v) => format!("{value:.0e}"),
        _ if v >= 100.0 => format!("{value:.0}"),
        _ => {
            let digits = (2.0 - v.log10().floor()).max(0.0) as usize;
            let text = format!("{value:.digits$}");
            if text.contains('.') {
                text.trim_end_matches('0').trim_end_matches('.').to_owned()
            } else {
                text
            }
        }
    }
}

/// Seconds in a unit that suits them.
pub fn time(seconds: f64) -> String {
    match seconds.abs() {
        s if s >= 1.0 => format!("{} s", short(&seconds)),
        s if s >= 1e-3 => format!("{} ms", short(&(seconds * 1e3))),
        s if s >= 1e-6 => format!("{} us", short(&(seconds * 1e6))),
        _ => format!("{} ns", short(&(seconds * 1e9))),
    }
}

/// MiB in a unit that suits them.
pub fn size(mib: f64) -> String {
    if mib >= 1024.0 {
        format!("{} GiB", short(&(mib / 1024.0)))
    } else {
        format!("{} MiB", short(&mib))
    }
}
