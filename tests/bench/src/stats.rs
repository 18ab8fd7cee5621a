// SPDX-License-Identifier: GPL-2.0-only

//! What is said about several values of one thing.

use serde::Serialize;

/// The middle and the spread of some values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// How many there are.
    pub n: usize,
    /// Half of them are not above.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
    /// Width of the middle half.
    pub quartiles: f64,
}

/// The value that a share of the sorted values is not above, between two of them if need be.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

impl Spread {
    /// Of values, of which there must be one.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut v = values.to_vec();
        v.sort_by(f64::total_cmp);
        Some(Self {
            n: v.len(),
            least: *v.first()?,
            most: *v.last()?,
            median: quantile(&v, 0.5),
            quartiles: quantile(&v, 0.75) - quantile(&v, 0.25),
        })
    }
}

/// `y = a + b * x`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Fit {
    /// What it costs in any case.
    pub a: f64,
    /// What each unit of x costs.
    pub b: f64,
    /// Share of the variance of y that this explains.
    pub r2: f64,
    /// By how much a value is off at most, as a share of it.
    pub off: f64,
}

impl Fit {
    /// Of points above 0, if they are not all above each other. The line has the least
    /// squares of what values are off as a share of themselves: sizes differ by more than
    /// a hundred times, and small ones would not count else.
    pub fn of(points: &[(f64, f64)]) -> Option<Self> {
        let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
            points.iter().map(|(x, y)| f(*x, *y) / (y * y)).sum()
        };
        let all = sum(&|_, _| 1.0);
        let (mx, my) = (sum(&|x, _| x) / all, sum(&|_, y| y) / all);
        let (xx, xy) = (
            sum(&|x, _| (x - mx) * (x - mx)),
            sum(&|x, y| (x - mx) * (y - my)),
        );
        if points.len() < 2 || xx == 0.0 {
            return None;
        }
        let b = xy / xx;
        let a = my - b * mx;
        let mean = points.iter().map(|p| p.1).sum::<f64>() / points.len() as f64;
        let squares = |from: &dyn Fn(f64) -> f64| -> f64 {
            points.iter().map(|(x, y)| (y - from(*x)).powi(2)).sum()
        };
        let (rest, spread) = (squares(&|x| a + b * x), squares(&|_| mean));
        Some(Self {
            a,
            b,
            r2: if spread == 0.0 {
                1.0
            } else {
                1.0 - rest / spread
            },
            off: points
                .iter()
                .map(|(x, y)| ((a + b * x) / y - 1.0).abs())
                .fold(0.0, f64::max),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middle_and_spread() {
        let s = Spread::of(&[3.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!((s.n, s.median, s.least, s.most), (4, 2.5, 1.0, 10.0));
        assert_eq!(s.quartiles, 4.75 - 1.75);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn finds_a_line() {
        let straight: Vec<_> = (0..10)
            .map(|x| (x.into(), 2.0 + 3.0 * f64::from(x)))
            .collect();
        let fit = Fit::of(&straight).unwrap();
        assert!((fit.a - 2.0).abs() < 1e-9 && (fit.b - 3.0).abs() < 1e-9);
        assert!((fit.r2 - 1.0).abs() < 1e-9 && fit.off < 1e-9);
        let noise = [(0.0, 1.0), (1.0, 3.0), (2.0, 1.0), (3.0, 3.0)];
        let fit = Fit::of(&noise).unwrap();
        assert!(fit.r2 < 0.3 && fit.off > 0.2, "{fit:?}");
        assert_eq!(Fit::of(&[(1.0, 1.0), (1.0, 2.0)]), None);
    }

    /// A small size that is far off counts as much as a large one.
    #[test]
    fn what_is_off_is_a_share() {
        let fit = Fit::of(&[(1.0, 2.0), (2.0, 4.0), (100.0, 201.0), (200.0, 380.0)]).unwrap();
        assert!(fit.off < 0.05, "{fit:?}");
    }
}
