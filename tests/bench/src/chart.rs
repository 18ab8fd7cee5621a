// SPDX-License-Identifier: GPL-2.0-only

//! Charts, as SVG.

use anyhow::ensure;
use anyhow::Result;
use plotters::coord::ranged1d::Ranged;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;

use crate::stats::Fit;
use crate::stats::Spread;

const SIZE: (u32, u32) = (760, 420);
/// Distinguishable also by those who do not see all colours.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(150, 150, 150),
];

/// Values of one thing at several sizes.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Size and values.
    pub points: Vec<(f64, Spread)>,
    /// The line through them.
    pub fit: Option<Fit>,
}

/// What is above and beside a chart.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// Above.
    pub title: &'a str,
    /// Below.
    pub x: &'a str,
    /// On the left.
    pub y: &'a str,
}

fn failed(e: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("cannot draw: {e}")
}

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

/// Lines with the spread at each point, or the fitted line, over ratios on both axes.
pub fn lines(labels: Labels<'_>, series: &[Series]) -> Result<String> {
    let all: Vec<&(f64, Spread)> = series.iter().flat_map(|s| &s.points).collect();
    ensure!(!all.is_empty(), "{}: nothing to draw", labels.title);
    let fold = |f: fn(f64, f64) -> f64, of: &dyn Fn(&(f64, Spread)) -> f64| {
        all.iter().map(|p| of(p)).reduce(f).unwrap_or(1.0)
    };
    let (x0, x1) = (fold(f64::min, &|p| p.0), fold(f64::max, &|p| p.0));
    let (y0, y1) = (
        fold(f64::min, &|p| p.1.least),
        fold(f64::max, &|p| p.1.most),
    );
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let mut builder = ChartBuilder::on(&root);
        builder
            .caption(labels.title, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(42)
            .y_label_area_size(70);

        let y0 = y0.max(y1 * 1e-9);
        let chart = builder
            .build_cartesian_2d(
                (x0 * 0.8..x1 * 1.25).log_scale(),
                (y0 * 0.6..y1 * 1.6).log_scale(),
            )
            .map_err(failed)?;
        draw(chart, labels, series, x0)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

type Area<'a, 'b, X, Y> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>;

fn draw<'a, X, Y>(
    mut chart: Area<'a, 'a, X, Y>,
    labels: Labels<'_>,
    series: &[Series],
    from: f64,
) -> Result<()>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc(labels.x)
        .y_desc(labels.y)
        .x_label_formatter(&short)
        .y_label_formatter(&short)
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(failed)?;
    for (s, colour) in series.iter().zip(COLOURS.into_iter().cycle()) {
        let points: Vec<_> = s.points.iter().map(|p| (p.0, p.1.median)).collect();
        let line = match s.fit {
            Some(fit) => {
                let end = points.last().map_or(1.0, |p| p.0);
                fitted(fit, from, end)
            }
            None => points.clone(),
        };
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))
            .map_err(failed)?
            .label(s.name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
        chart
            .draw_series(points.iter().map(|p| Circle::new(*p, 3, colour.filled())))
            .map_err(failed)?;
        chart
            .draw_series(
                s.points
                    .iter()
                    .map(|(x, y)| PathElement::new([(*x, y.least), (*x, y.most)], colour)),
            )
            .map_err(failed)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()
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

/// One bar for each thing, with its spread.
pub fn bars(labels: Labels<'_>, values: &[(String, Spread)]) -> Result<String> {
    let most = values.iter().map(|v| v.1.most).reduce(f64::max);
    let most = most.filter(|m| *m > 0.0);
    ensure!(most.is_some(), "{}: nothing to draw", labels.title);
    let most = most.unwrap_or(1.0);
    let mut svg = String::new();
    {
        let height = 90 + 34 * values.len() as u32;
        let root = SVGBackend::with_string(&mut svg, (SIZE.0, height)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let nr = values.len() as f64;
        let mut chart = ChartBuilder::on(&root)
            .caption(labels.title, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(230)
            .build_cartesian_2d(0.0..most * 1.18, 0.0..nr)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(0)
            .x_desc(labels.x)
            .x_label_formatter(&short)
            .light_line_style(TRANSPARENT)
            .draw()
            .map_err(failed)?;
        for (i, (name, s)) in values.iter().enumerate() {
            let y = nr - i as f64 - 0.5;
            let colour = COLOURS[i % COLOURS.len()];
            let bar = Rectangle::new([(0.0, y - 0.3), (s.median, y + 0.3)], colour.filled());
            let spread = PathElement::new([(s.least, y), (s.most, y)], BLACK);
            chart.draw_series([bar]).map_err(failed)?;
            chart.draw_series([spread]).map_err(failed)?;
            let text = Text::new(
                short(&s.median),
                (s.most + most * 0.01, y + 0.2),
                ("sans-serif", 13),
            );
            chart.draw_series([text]).map_err(failed)?;
            // The axis has numbers only.
            let at = chart.backend_coord(&(0.0, y));
            let style = ("sans-serif", 13).into_text_style(&root).pos(
                plotters::style::text_anchor::Pos::new(
                    plotters::style::text_anchor::HPos::Right,
                    plotters::style::text_anchor::VPos::Center,
                ),
            );
            root.draw_text(name, &style, (at.0 - 8, at.1))
                .map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(v: f64) -> Spread {
        Spread::of(&[v, v * 1.1, v * 0.9]).unwrap()
    }

    #[test]
    fn draws_what_it_is_given() {
        let labels = Labels {
            title: "a title",
            x: "below",
            y: "left",
        };
        let series = [Series {
            name: "one series".into(),
            points: vec![(1.0, spread(2.0)), (10.0, spread(20.0))],
            fit: Fit::of(&[(1.0, 2.0), (10.0, 20.0)]),
        }];
        let svg = lines(labels, &series).unwrap();
        for text in ["<svg", "a title", "below", "left", "one series", "<circle"] {
            assert!(svg.contains(text), "no {text}");
        }
        let svg = bars(labels, &[("a bar".into(), spread(3.0))]).unwrap();
        assert!(svg.contains("a bar") && svg.contains("<rect"));
        assert!(lines(labels, &[]).is_err());
        assert!(bars(labels, &[]).is_err());
    }

    #[test]
    fn numbers_are_short() {
        let all = [0.0, 1.5, 1234.4, 0.0123, 1e7, 10.0].map(|v| short(&v));
        assert_eq!(all, ["0", "1.5", "1234", "0.0123", "1e7", "10"]);
    }
}
