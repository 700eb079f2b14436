//! [`Scrape`]: the encoder of one scrape, with a call for each kind of metric.
//!
//! Counters are encoded under their base names: `prometheus-client` appends `_total`.

use std::fmt;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, EncodeMetric,
};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;

/// The name of a metric, and the sentence that explains it.
#[derive(Clone, Copy)]
pub(super) struct Described {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
}

/// The encoder of one scrape.
pub(super) struct Scrape<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl<'a> Scrape<'a> {
    pub(super) fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self { encoder }
    }

    pub(super) fn gauge(&mut self, of: Described, value: impl EncodeGaugeValue) -> fmt::Result {
        self.encode_one(of, ConstGauge::new(value))
    }

    pub(super) fn counter(&mut self, of: Described, value: u64) -> fmt::Result {
        self.encode_one(of, ConstCounter::new(value))
    }

    pub(super) fn gauges<const N: usize>(
        &mut self,
        of: Described,
        values: [(impl EncodeLabelSet, impl EncodeGaugeValue); N],
    ) -> fmt::Result {
        self.encode(of, values.map(|(labels, value)| (labels, ConstGauge::new(value))))
    }

    pub(super) fn counters<const N: usize>(
        &mut self,
        of: Described,
        values: [(impl EncodeLabelSet, impl EncodeCounterValue); N],
    ) -> fmt::Result {
        self.encode(of, values.map(|(labels, value)| (labels, ConstCounter::new(value))))
    }

    /// Encodes a counter for each label; nothing if there is none.
    pub(super) fn counters_of_each(
        &mut self,
        of: Described,
        values: impl Iterator<Item = (impl EncodeLabelSet, u64)>,
    ) -> fmt::Result {
        self.encode_each(of, values.map(|(labels, value)| (labels, ConstCounter::new(value))))
    }

    /// Encodes a gauge for each label; nothing if there is none.
    pub(super) fn gauges_of_each(
        &mut self,
        of: Described,
        values: impl Iterator<Item = (impl EncodeLabelSet, u64)>,
    ) -> fmt::Result {
        self.encode_each(of, values.map(|(labels, value)| (labels, ConstGauge::new(value))))
    }

    fn encode_each<M: EncodeMetric>(
        &mut self,
        of: Described,
        values: impl Iterator<Item = (impl EncodeLabelSet, M)>,
    ) -> fmt::Result {
        let mut values = values.peekable();
        let Some((_, first)) = values.peek() else {
            return Ok(());
        };
        let Described { name, help } = of;
        let mut encoder = self.encoder.encode_descriptor(name, help, None, first.metric_type())?;
        values.try_for_each(|(labels, metric)| metric.encode(encoder.encode_family(&labels)?))
    }

    pub(super) fn histogram(&mut self, of: Described, histogram: &Histogram) -> fmt::Result {
        let Described { name, help } = of;
        let kind = histogram.metric_type();
        histogram.encode(self.encoder.encode_descriptor(name, help, None, kind)?)
    }

    pub(super) fn labelled_histogram(
        &mut self,
        of: Described,
        labels: &impl EncodeLabelSet,
        histogram: &Histogram,
    ) -> fmt::Result {
        let Described { name, help } = of;
        let kind = histogram.metric_type();
        let mut encoder = self.encoder.encode_descriptor(name, help, None, kind)?;
        histogram.encode(encoder.encode_family(labels)?)
    }

    fn encode_one(&mut self, of: Described, metric: impl EncodeMetric) -> fmt::Result {
        let Described { name, help } = of;
        metric.encode(self.encoder.encode_descriptor(name, help, None, metric.metric_type())?)
    }

    fn encode<M: EncodeMetric, const N: usize>(
        &mut self,
        of: Described,
        metrics: [(impl EncodeLabelSet, M); N],
    ) -> fmt::Result {
        let Described { name, help } = of;
        let kind = metrics[0].1.metric_type();
        let mut encoder = self.encoder.encode_descriptor(name, help, None, kind)?;
        for (labels, metric) in &metrics {
            metric.encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }
}
