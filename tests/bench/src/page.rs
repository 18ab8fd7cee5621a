// SPDX-License-Identifier: GPL-2.0-only

//! The page: what a reader asks first, then a chart for each thing, with its values.

use std::collections::BTreeMap;

use anyhow::Result;
use maud::html;
use maud::Markup;
use maud::PreEscaped;
use maud::DOCTYPE;

use crate::results::Results;
use crate::section::Answer;
use crate::section::Figure;
use crate::section::Section;
use crate::sections;
use crate::units::short;

/// For a screen of any width, and for paper.
const STYLE: &str = "\
    body{font:16px/1.5 sans-serif;max-width:52em;margin:1.5em auto;padding:0 1em;color:#222}\
    h1{font-size:1.5em}h2{font-size:1.2em;margin:2.2em 0 .3em}p{margin:.4em 0}\
    .answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(15em,1fr));gap:1em}\
    .answers div{border:1px solid #ccc;border-radius:6px;padding:.7em 1em}\
    .answers b{display:block;font-size:1.9em;line-height:1.3;color:#005293}\
    svg{display:block;max-width:100%;height:auto;margin:.6em 0}\
    .wide{overflow-x:auto}\
    table{border-collapse:collapse;font-size:14px}\
    td,th{border-bottom:1px solid #ddd;padding:2px 8px;text-align:left;vertical-align:top}\
    td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\
    small,summary{color:#555}details{margin:.5em 0}\
    @media print{body{max-width:none;font-size:11pt}section,.answers div{break-inside:avoid}\
    details{display:none}}";

/// With the first row as its head; the columns from `numbers` on are such.
fn table(rows: &[Vec<String>], numbers: usize) -> Markup {
    let class = |i: usize| (i >= numbers).then_some("n");
    html! {
        div.wide {
            table {
                @for (number, row) in rows.iter().enumerate() {
                    tr {
                        @for (i, text) in row.iter().enumerate() {
                            @if number == 0 {
                                th class=[class(i)] { (text) }
                            } @else {
                                td class=[class(i)] { (text) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn figure(s: &Section) -> Result<Markup> {
    let numbers = match s.figure {
        Figure::Bars(..) | Figure::Stack(..) => 2,
        Figure::Lines(..) => 1,
    };
    let svg = s.figure.svg()?;
    Ok(html! {
        section {
            h2 id=(s.id) { (s.title) }
            p { (s.sentence) }
            (PreEscaped(svg))
            details { summary { "Values" } (table(&s.figure.table(), numbers)) }
            @if !s.method.is_empty() { p { small { (s.method) } } }
        }
    })
}

fn values(results: &Results) -> Vec<Vec<String>> {
    let head = [
        "what",
        "series",
        "unit",
        "MiB",
        "median",
        "least",
        "most",
        "middle half",
        "of",
    ];
    let rows = results.groups().into_iter().map(|g| {
        let (first, spread) = (g.first, g.spread);
        vec![
            first.what.clone(),
            first.series.clone(),
            first.unit.clone(),
            first.mib.to_string(),
            short(&spread.median),
            short(&spread.least),
            short(&spread.most),
            short(&spread.quartiles),
            spread.n.to_string(),
        ]
    });
    std::iter::once(head.map(str::to_owned).to_vec())
        .chain(rows)
        .collect()
}

/// All of it.
pub fn page(
    answers: &[Answer],
    sections: &[Section],
    results: &Results,
    environment: &BTreeMap<String, String>,
    missing: &[String],
) -> Result<Markup> {
    let figures = sections.iter().map(figure).collect::<Result<Vec<_>>>()?;
    let environment: Vec<Vec<String>> = std::iter::once(vec![String::new(), String::new()])
        .chain(environment.iter().map(|(k, v)| vec![k.clone(), v.clone()]))
        .collect();
    Ok(html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "VMBeam: measurements" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "VMBeam: a guest VM changes its host, and its memory stays where it is" }
                div.answers {
                    @for a in answers {
                        div { (a.question) b { (a.figure) } small { (a.words) "." } }
                    }
                }
                p {
                    small {
                        "Blue is VMBeam, orange is what there is without it. Bars and dots are medians, \
                         thin lines go from the least to the most. Made by " code { "make bench" }
                        "; all samples are in " code { "samples.csv" } ", this page's figures in "
                        code { "summary.json" } "."
                    }
                }
                @for f in &figures { (f) }
                h2 { "What these figures can tell" }
                @for text in sections::HONEST { p { (text) } }
                h2 { "Not measured" }
                ul { @for m in missing { li { (m) } } }
                h2 { "Where it was measured" }
                (table(&environment, 2))
                h2 { "All values" }
                details {
                    summary { "Medians with their spread" }
                    (table(&values(results), 3))
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::Group;
    use crate::section::{ours, Figure};
    use crate::stats::Spread;
    use vmbeam_bench::Part;

    #[test]
    fn the_page_escapes_and_has_all() {
        let mut part = Part::new("lists");
        part.add("lists.time", "a < b", 1024.0, 1.0, "s");
        let environment = BTreeMap::from([("CPU".into(), "fast & new".into())]);
        let spread = Spread::of(&[1.0]).unwrap();
        let section = Section {
            id: "x",
            title: "A title",
            sentence: "It says.".into(),
            figure: Figure::Bars(
                vec![Group {
                    name: "a group".into(),
                    bars: vec![ours("a bar", spread)],
                }],
                |v| format!("{v} s"),
            ),
            method: "",
        };
        let answer = Answer {
            question: "How?",
            figure: "42 s".into(),
            words: "so".into(),
        };
        let results = Results::new(&[part]);
        let page = page(
            &[answer],
            &[section],
            &results,
            &environment,
            &["this".into()],
        );
        let text = page.unwrap().into_string();
        for want in [
            "a &lt; b",
            "fast &amp; new",
            "It says.",
            "<svg",
            "<td>a group</td>",
            "<td class=\"n\">1 s</td>",
            "How?<b>42 s</b>",
            "<li>this</li>",
        ] {
            assert!(text.contains(want), "no {want}: {text}");
        }
    }
}
