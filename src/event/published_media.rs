//! `PublishedMedia`: the media whose events a publisher sends, and their names in these events.

use crate::id::Medium;
use crate::prefix::kv_event::KvEvent;

/// The media whose events a publisher sends, and their names there.
#[derive(Clone, Debug)]
pub(super) struct PublishedMedia {
    /// True if the events of tiers are sent.
    pub(super) tiers: bool,
    device: String,
    host: String,
    disk: String,
}

impl Default for PublishedMedia {
    fn default() -> Self {
        let [device, host, disk] = ["GPU", "CPU", "DISK"].map(str::to_owned);
        Self { tiers: false, device, host, disk }
    }
}

impl PublishedMedia {
    /// Returns the name of a medium.
    pub(super) fn name(&self, of: Medium) -> &str {
        match of {
            Medium::Device => &self.device,
            Medium::Host => &self.host,
            Medium::Disk => &self.disk,
        }
    }

    pub(super) fn set_name(&mut self, of: Medium, name: String) {
        *match of {
            Medium::Device => &mut self.device,
            Medium::Host => &mut self.host,
            Medium::Disk => &mut self.disk,
        } = name;
    }

    /// Returns true if the event is sent.
    pub(super) fn contain(&self, event: &KvEvent<'_>) -> bool {
        self.tiers || event.medium().is_none_or(|medium| medium == Medium::Device)
    }
}
