// SPDX-License-Identifier: GPL-2.0-only

//! Charts, as SVG. They are narrow, so that they can be read on a telephone as well, and no
//! text is beside, below or above a line: what is in a chart is said under it.

use anyhow::ensure;
use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::stats::Fit;
use crate::stats::Spread;
use crate::units::short;
use crate::units::size;

/// A telephone shows this at three quarters of its size.
const WIDTH: u32 = 520;
const FONT: (&str, u32) = ("sans-serif", 18);
/// Of a line of text.
const LINE: u32 = 26;
/// Of a bar.
const BAR: u32 = 22;
/// Room for a bar's value and name, to the right of the longest one.
const VALUE: u32 = 300;

/// What is compared: the same two colours in all charts, in shades if there are more lines
/// than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// VMBeam.
    Ours,
    /// What there is without it.
    Other,
}

impl Method {
    fn colour(self, shade: usize) -> RGBColor {
        let shades = match self {
            Self::Ours => [(0, 82, 147), (46, 134, 201), (125, 185, 228), (20, 40, 80)],
            Self::Other => [(201, 90, 0), (238, 155, 80), (130, 60, 10), (250, 200, 150)],
        };
        let (r, g, b) = shades[shade % shades.len()];
        RGBColor(r, g, b)
    }
}

/// Values of one thing at several sizes.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub method: Method,
    /// Size and values.
    pub points: Vec<(f64, Spread)>,
    /// The line through them.
    pub fit: Option<Fit>,
}

/// What stands at the axes.
#[derive(Clone, Copy, Debug)]
pub struct Axes<'a> {
    /// Below.
    pub x: &'a str,
    /// On the left.
    pub y: &'a str,
}

/// A bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Behind it.
    pub name: String,
    /// Whose it is.
    pub method: Method,
    /// Its length.
    pub value: Spread,
}

/// Bars that are compared with each other.
#[derive(Clone, Debug)]
pub struct Group {
    /// Above them.
    pub name: String,
    /// One below the other.
    pub bars: Vec<Bar>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn failed(e: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("cannot draw: {e}")
}

/// Draw something of this height.
fn picture(height: u32, draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        draw(&root)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Lines with the spread at each point, or the fitted line, over ratios on both axes.
pub fn lines(axes: Axes<'_>, series: &[Series]) -> Result<String> {
    const HEIGHT: u32 = 330;
    let all: Vec<&(f64, Spread)> = series.iter().flat_map(|s| &s.points).collect();
    ensure!(!all.is_empty(), "{}: nothing to draw", axes.y);
    let fold = |f: fn(f64, f64) -> f64, of: &dyn Fn(&(f64, Spread)) -> f64| {
        all.iter().map(|p| of(p)).reduce(f).unwrap_or(1.0)
    };
    let (x0, x1) = (fold(f64::min, &|p| p.0), fold(f64::max, &|p| p.0));
    let (y0, y1) = (
        fold(f64::min, &|p| p.1.least),
        fold(f64::max, &|p| p.1.most),
    );
    let y0 = y0.max(y1 * 1e-9);
    let shade = |i: usize| {
        let same = series[..i].iter().filter(|s| s.method == series[i].method);
        series[i].method.colour(same.count())
    };
    picture(HEIGHT + LINE * series.len() as u32 + 10, |root| {
        let (above, below) = root.split_vertically(HEIGHT);
        let mut chart = ChartBuilder::on(&above)
            .margin(10)
            .margin_right(24)
            .x_label_area_size(56)
            .y_label_area_size(80)
            .build_cartesian_2d(
                (x0 * 0.8..x1 * 1.25).log_scale().base(2.0),
                (y0 * 0.6..y1 * 1.6).log_scale(),
            )
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc(axes.x)
            .y_desc(axes.y)
            .x_labels(5)
            .y_labels(6)
            .label_style(FONT)
            .axis_desc_style(FONT)
            .x_label_formatter(&|mib| size(*mib))
            .y_label_formatter(&short)
            .light_line_style(TRANSPARENT)
            .draw()
            .map_err(failed)?;
        for (i, s) in series.iter().enumerate() {
            let colour = shade(i);
            let points: Vec<_> = s.points.iter().map(|p| (p.0, p.1.median)).collect();
            let line = match s.fit {
                Some(fit) => fitted(fit, x0, points.last().map_or(1.0, |p| p.0)),
                None => points.clone(),
            };
            let line = LineSeries::new(line, colour.stroke_width(2));
            chart.draw_series(line).map_err(failed)?;
            let dots = points.iter().map(|p| Circle::new(*p, 4, colour.filled()));
            chart.draw_series(dots).map_err(failed)?;
            let spread = s.points.iter();
            let spread =
                spread.map(|(x, y)| PathElement::new([(*x, y.least), (*x, y.most)], colour));
            chart.draw_series(spread).map_err(failed)?;
            let y = (LINE * i as u32 + LINE / 2) as i32;
            let sample = PathElement::new([(14, y), (44, y)], colour.stroke_width(4));
            below.draw(&sample).map_err(failed)?;
            text(&below, &s.name, (54, y - 8), "normal")?;
        }
        Ok(())
    })
}

fn text(area: &Area<'_>, text: &str, at: (i32, i32), weight: &str) -> Result<()> {
    let style = FontDesc::from(FONT).style(match weight {
        "bold" => FontStyle::Bold,
        _ => FontStyle::Normal,
    });
    area.draw_text(text, &style.into_text_style(area), at)
        .map_err(failed)
}

/// The line, in steps, for it is not straight on axes by ratio.
fn fitted(fit: Fit, from: f64, end: f64) -> Vec<(f64, f64)> {
    (0..=64)
        .map(|i| {
            let share = f64::from(i) / 64.0;
            let x = from * (end / from).powf(share);
            (x, fit.a + fit.b * x)
        })
        .filter(|p| p.1 > 0.0)
        .collect()
}

/// Bars in groups, each with its spread, and its value behind it, as `value` says it.
pub fn bars(groups: &[Group], value: fn(f64) -> String) -> Result<String> {
    let bars = || groups.iter().flat_map(|g| &g.bars);
    let most = bars().map(|b| b.value.most).reduce(f64::max);
    let most = most.filter(|m| *m > 0.0);
    ensure!(most.is_some(), "nothing to draw");
    let scale = f64::from(WIDTH - VALUE - 10) / most.unwrap_or(1.0);
    let rows = bars().count() as u32;
    let height = rows * (BAR + 4) + groups.len() as u32 * (LINE + 14);
    picture(height, |root| {
        let mut y = 0;
        for group in groups {
            text(root, &group.name, (2, y + 4), "bold")?;
            y += LINE as i32;
            for bar in &group.bars {
                let length = |v: f64| 2 + (v * scale).max(1.0) as i32;
                let (end, middle) = (length(bar.value.median), y + BAR as i32 / 2);
                let colour = bar.method.colour(0);
                root.draw(&Rectangle::new(
                    [(2, y), (end, y + BAR as i32)],
                    colour.filled(),
                ))
                .map_err(failed)?;
                let (least, most) = (length(bar.value.least), length(bar.value.most));
                root.draw(&PathElement::new([(least, middle), (most, middle)], BLACK))
                    .map_err(failed)?;
                let said = format!("{}  {}", value(bar.value.median), bar.name);
                text(root, said.trim_end(), (most + 8, y + 3), "normal")?;
                y += BAR as i32 + 4;
            }
            y += 14;
        }
        Ok(())
    })
}

/// A bar for each group, of its parts behind each other: what they are stands below all of them,
/// and how much they are together above each.
pub fn stack(groups: &[Group], value: fn(f64) -> String) -> Result<String> {
    let whole = |g: &Group| g.bars.iter().map(|b| b.value.median).sum::<f64>();
    let most = groups.iter().map(whole).reduce(f64::max);
    let most = most.filter(|m| *m > 0.0);
    ensure!(most.is_some(), "nothing to draw");
    let scale = f64::from(WIDTH - 20) / most.unwrap_or(1.0);
    let mut parts: Vec<&str> = Vec::new();
    for bar in groups.iter().flat_map(|g| &g.bars) {
        if !parts.contains(&&*bar.name) {
            parts.push(&bar.name);
        }
    }
    let shade = |name: &str| {
        let at = parts.iter().position(|p| *p == name).unwrap_or_default();
        step(at, parts.len()).filled()
    };
    let row = LINE + BAR + 14;
    let height = groups.len() as u32 * row + parts.len() as u32 * LINE + 6;
    picture(height, |root| {
        let mut y = 0;
        for group in groups {
            let said = format!("{}: {}", group.name, value(whole(group)));
            text(root, &said, (2, y + 4), "bold")?;
            let top = y + LINE as i32;
            let mut from = 0.0;
            for bar in &group.bars {
                let to = from + bar.value.median;
                let at = |v: f64| 2 + (v * scale) as i32;
                let part = [(at(from), top), (at(to), top + BAR as i32)];
                root.draw(&Rectangle::new(part, shade(&bar.name)))
                    .map_err(failed)?;
                from = to;
            }
            y += row as i32;
        }
        for part in &parts {
            let sample = [(14, y + 4), (34, y + BAR as i32 - 2)];
            root.draw(&Rectangle::new(sample, shade(part)))
                .map_err(failed)?;
            text(root, part, (44, y + 4), "normal")?;
            y += LINE as i32;
        }
        Ok(())
    })
}

/// One of so many shades of ours, from dark to light.
fn step(at: usize, of: usize) -> RGBColor {
    const ENDS: [(f64, f64); 3] = [(15.0, 205.0), (45.0, 225.0), (85.0, 245.0)];
    let share = at as f64 / of.max(2).saturating_sub(1) as f64;
    let [r, g, b] = ENDS.map(|(dark, light)| (dark + (light - dark) * share) as u8);
    RGBColor(r, g, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(v: f64) -> Spread {
        Spread::of(&[v, v * 1.1, v * 0.9]).unwrap()
    }

    #[test]
    fn draws_what_it_is_given() {
        let axes = Axes {
            x: "below",
            y: "left",
        };
        let series = [Series {
            name: "one series".into(),
            method: Method::Ours,
            points: vec![(1.0, spread(2.0)), (10.0, spread(20.0))],
            fit: Fit::of(&[(1.0, 2.0), (10.0, 20.0)]),
        }];
        let svg = lines(axes, &series).unwrap();
        for text in ["<svg", "below", "left", "one series", "<circle"] {
            assert!(svg.contains(text), "no {text}: {svg}");
        }
        let group = Group {
            name: "a group".into(),
            bars: vec![Bar {
                name: "a bar".into(),
                method: Method::Other,
                value: spread(3.0),
            }],
        };
        let svg = bars(&[group], |v| format!("{} s", short(&v))).unwrap();
        assert!(svg.contains("a group") && svg.contains("3 s  a bar") && svg.contains("#C95A00"));
        assert!(lines(axes, &[]).is_err());
        assert!(bars(&[], |v| short(&v)).is_err());
        let part = |name: &str, v| Bar {
            name: name.into(),
            method: Method::Ours,
            value: spread(v),
        };
        let group = |name: &str, all| Group {
            name: name.into(),
            bars: all,
        };
        let groups = [
            group("idle", vec![part("restore", 2.0), part("swap", 1.0)]),
            group("busy", vec![part("restore", 4.0)]),
        ];
        let svg = stack(&groups, |v| format!("{} s", short(&v))).unwrap();
        // Each part is named once, whole bars by their sums.
        assert!(svg.contains("idle: 3 s") && svg.contains("busy: 4 s"));
        assert_eq!(svg.matches("restore").count(), 1);
        assert_eq!(svg.matches("<rect").count(), 1 + 3 + 2);
        assert!(stack(&[], |v| short(&v)).is_err());
    }

    #[test]
    fn numbers_are_short() {
        let all = [0.0, 1.5, 1234.4, 0.0123, 1e7, 10.0].map(|v| short(&v));
        assert_eq!(all, ["0", "1.5", "1234", "0.0123", "1e7", "10"]);
    }
}
