// SPDX-License-Identifier: GPL-2.0-only

//! What a measurement leaves behind, for whoever measures and for the report.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;
use serde::Serialize;

/// One value that was measured.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Sample {
    /// What was measured, and so which chart it belongs to: `swap.commit`.
    pub what: String,
    /// Which of the things that are compared.
    pub series: String,
    /// Memory of the guest VM in MiB.
    pub mib: f64,
    /// The value.
    pub value: f64,
    /// Its unit: `s`, `bytes`, or nothing for a count.
    pub unit: String,
}

/// The results of one program.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Part {
    /// Who measured; the file's name.
    pub name: String,
    /// Everything else that a reader has to know about it.
    pub environment: BTreeMap<String, String>,
    /// The values, in the order in which they were measured.
    pub samples: Vec<Sample>,
    /// What was to be measured and was not, and why.
    pub missing: Vec<String>,
}

/// Where the parts and the report are.
pub fn directory() -> PathBuf {
    PathBuf::from("build/report/bench")
}

impl Part {
    /// An empty one.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Enter one value.
    pub fn add(&mut self, what: &str, series: &str, mib: f64, value: f64, unit: &str) {
        self.samples.push(Sample {
            what: what.into(),
            series: series.into(),
            mib,
            value,
            unit: unit.into(),
        });
    }

    /// Write it to `parts/`, over what an earlier run left there.
    pub fn write(&self) -> Result<()> {
        let dir = directory().join("parts");
        fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{}.json", self.name));
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Read what [`Part::write`] wrote, if it did.
    pub fn read(name: &str) -> Result<Option<Self>> {
        let path = directory().join("parts").join(format!("{name}.json"));
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path)?;
        serde_json::from_str(&text)
            .map(Some)
            .with_context(|| format!("{} is damaged", path.display()))
    }
}
