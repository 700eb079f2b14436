//! [`Scraped`]: the series of one scrape, parsed back from the text that Prometheus reads.

use std::collections::{BTreeMap, BTreeSet};

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

/// One value with its name and labels.
#[derive(Debug)]
pub struct Series {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// The parsed text of one scrape.
pub struct Scraped {
    pub series: Vec<Series>,
    /// The names of the lines `# TYPE`, each with its type.
    types: Vec<(String, String)>,
    text: String,
}

impl Scraped {
    /// Scrapes in the classic format.
    pub fn of(registry: &Registry) -> Self {
        let mut text = String::new();
        prometheus_text::encode(&mut text, registry).expect("a string takes all");
        Self::parse(text)
    }

    /// Scrapes in the classic format and in that of OpenMetrics.
    pub fn in_both_formats(registry: &Registry) -> [Self; 2] {
        let mut open_metrics = String::new();
        text::encode(&mut open_metrics, registry).expect("a string takes all");
        assert!(open_metrics.ends_with("# EOF\n"));
        [Self::of(registry), Self::parse(open_metrics)]
    }

    fn parse(text: String) -> Self {
        let (mut series, mut types) = (Vec::new(), Vec::new());
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(of_type) => {
                    let (name, of_type) = of_type.split_once(' ').expect("a name and a type");
                    types.push((name.to_owned(), of_type.to_owned()));
                }
                None if line.starts_with('#') => {}
                None => series.push(series_of(line)),
            }
        }
        Self { series, types, text }
    }

    /// Returns the values of the series of that name with these labels.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let has = |series: &Series, label: &(&str, &str)| {
            series.labels.get(label.0).is_some_and(|value| value == label.1)
        };
        let fits =
            |series: &&Series| series.name == name && labels.iter().all(|label| has(series, label));
        self.series.iter().filter(fits).map(|series| series.value).collect()
    }

    /// Returns the value of the one series of that name, which has no labels.
    #[track_caller]
    pub fn only(&self, name: &str) -> f64 {
        let found: Vec<_> = self.series.iter().filter(|series| series.name == name).collect();
        let [series] = found.as_slice() else { panic!("{name} has {found:?}\n{}", self.text) };
        assert!(series.labels.is_empty(), "{series:?}");
        series.value
    }

    /// Returns the names of all series.
    pub fn names(&self) -> BTreeSet<String> {
        self.series.iter().map(|series| series.name.clone()).collect()
    }

    /// Asserts that each series appears once and is of a described metric, that counters end with `_total`
    /// once, and that other metrics do not.
    pub fn assert_well_formed(&self) {
        let mut seen = BTreeSet::new();
        for Series { name, labels, .. } in &self.series {
            assert!(seen.insert((name, labels)), "{name} {labels:?} appears twice");
        }
        let types: BTreeMap<&str, &str> =
            self.types.iter().map(|(name, of_type)| (base(name), of_type.as_str())).collect();
        assert_eq!(types.len(), self.types.len(), "a metric is described twice\n{}", self.text);
        for name in self.names() {
            let of_histogram = ["_bucket", "_sum", "_count"];
            let of_histogram = of_histogram.iter().find_map(|end| name.strip_suffix(end));
            if of_histogram.is_some_and(|name| types.get(name) == Some(&"histogram")) {
                continue;
            }
            let of_type = types.get(base(&name)).unwrap_or_else(|| panic!("{name} has no type"));
            assert_eq!(*of_type == "counter", name.ends_with("_total"), "{name}: {of_type}");
            assert!(!name.ends_with("_total_total"), "{name}");
        }
    }
}

fn base(name: &str) -> &str {
    name.strip_suffix("_total").unwrap_or(name)
}

/// Parses `name{label="value",..} number`. No label of these tests has a quote or a comma in it.
fn series_of(line: &str) -> Series {
    let (series, value) = line.rsplit_once(' ').expect("a series and a value");
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}').expect("a closed brace")),
        None => (series, ""),
    };
    let label = |label: &str| {
        let (name, value) = label.split_once('=').expect("a label and a value");
        (name.to_owned(), value.trim_matches('"').to_owned())
    };
    Series {
        name: name.to_owned(),
        labels: labels.split(',').filter(|label| !label.is_empty()).map(label).collect(),
        value: value.parse().expect("a number"),
    }
}

#[test]
fn a_line_is_parsed_into_name_labels_and_value() {
    let series = series_of("vllm:x_total{model_name=\"llama\",engine=\"0\"} 7");
    assert_eq!((series.name.as_str(), series.value), ("vllm:x_total", 7.0));
    assert_eq!(series.labels["engine"], "0");
    assert!(series_of("x 1").labels.is_empty());
}
