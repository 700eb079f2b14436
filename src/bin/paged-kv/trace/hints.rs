//! `give`: the hints with which requests are released, from the sessions of a trace.
//!
//! A request whose session has a further one within half a minute is back soon. The last one of a session is closed.
//! A server knows as much if the client says when it calls a tool and when it ends a session.

use std::collections::HashMap;

use paged_kv::ReuseHint;

use super::request::Request;

/// The longest time to the next request of a session that comes back soon, in microseconds.
const SOON_US: u64 = 30_000_000;

/// Gives each request with a session its hint.
pub fn give(requests: &mut [Request], sessions: &[Option<u64>]) {
    let mut later: HashMap<u64, Option<u64>> = HashMap::new();
    for (request, session) in requests.iter_mut().zip(sessions).rev() {
        let Some(session) = session else { continue };
        let arrival = request.arrival_us();
        request.set_hint(match later.insert(*session, arrival) {
            None => ReuseHint::Closed,
            Some(next) => match next.zip(arrival).map(|(next, arrival)| next - arrival) {
                Some(gap) if gap <= SOON_US => ReuseHint::BackSoon,
                _ => ReuseHint::Unknown,
            },
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_request_of_the_session_decides() {
        let times = [0, 1, 31, 62, 63];
        let request =
            |seconds: u64| Request::new(4, 1).unwrap().arrives_at(Some(seconds * 1_000_000));
        let mut requests = times.map(request);
        give(&mut requests, &[Some(1), Some(2), Some(2), Some(2), None]);
        let hints = requests.map(|request| request.hint());
        let expected = [
            ReuseHint::Closed,
            ReuseHint::BackSoon,
            ReuseHint::Unknown,
            ReuseHint::Closed,
            ReuseHint::Unknown,
        ];
        assert_eq!(hints, expected);
    }
}
