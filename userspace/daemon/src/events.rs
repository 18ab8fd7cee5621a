// SPDX-License-Identifier: GPL-2.0-only

//! What happens, for whoever follows it. Whoever makes it happen waits for nobody: each follower
//! has a queue, and what does not fit into it is counted and lost.

use crate::client::{failed, Client};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};
use tracing::field::{Field, Visit};
use tracing::Level;
use vmbeam_control_protocol::{Event, EventKind, Failure, FromDaemon, JobReport};
use vmbeam_log::{Layer, LayerContext};

/// Events that wait for a follower, at most.
const QUEUED: usize = 1024;
/// Followers at once: fewer than there may be clients, so that others always have room.
const FOLLOWERS: usize = 16;
/// How often to look whether a follower is still there, or takes more.
const LOOK: Duration = Duration::from_millis(250);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn event(kind: EventKind) -> Event {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    // It fits for half a thousand million years.
    Event::new(since.unwrap_or_default().as_millis() as u64, kind)
}

fn missing(dropped: u64) -> Event {
    Event {
        dropped,
        ..event(EventKind::Dropped)
    }
}

/// What a follower has not got yet.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Event>,
    /// What came after these and is lost.
    dropped: u64,
}

impl Queue {
    fn push(&mut self, event: &Event) {
        if self.waiting.len() >= QUEUED {
            self.dropped += 1;
            return;
        }
        let gap = std::mem::take(&mut self.dropped);
        self.waiting.extend((gap > 0).then(|| missing(gap)));
        self.waiting.push_back(event.clone());
    }

    fn pop(&mut self) -> Option<Event> {
        self.waiting.pop_front().or_else(|| {
            let gap = std::mem::take(&mut self.dropped);
            (gap > 0).then(|| missing(gap))
        })
    }
}

/// Somebody who wants to know what happens.
#[derive(Debug, Default)]
struct Follower {
    queue: Mutex<Queue>,
    more: Condvar,
}

/// What happens in this daemon, and who is told.
#[derive(Debug, Default)]
pub struct Events(Mutex<Vec<Weak<Follower>>>);

impl Events {
    /// Tell all. Never waits, and may be called with anything locked.
    fn tell(&self, event: &Event) {
        for follower in lock(&self.0).iter().filter_map(Weak::upgrade) {
            lock(&follower.queue).push(event);
            follower.more.notify_one();
        }
    }

    /// A job has begun, does something else, or has ended.
    pub(crate) fn job(&self, kind: EventKind, job: &JobReport) {
        self.tell(&event(kind).about(job));
    }

    /// Something is so of a host VM now, and perhaps why.
    pub(crate) fn host_vm(&self, kind: EventKind, host_vm: &str, text: Option<&str>) {
        self.tell(&Event {
            host_vm: Some(host_vm.into()),
            text: text.map(Into::into),
            ..event(kind)
        });
    }

    /// One more is told from now on, unless there are too many.
    fn follow(&self) -> Option<Arc<Follower>> {
        let mut all = lock(&self.0);
        all.retain(|follower| follower.strong_count() > 0);
        (all.len() < FOLLOWERS).then(|| {
            let follower = Arc::new(Follower::default());
            lock(&follower.queue).push(&event(EventKind::Following));
            all.push(Arc::downgrade(&follower));
            follower
        })
    }

    /// Tell a client what happens until it has gone, or nothing more is going to happen, which
    /// `is_over` says. What it does not take waits in its queue.
    pub(crate) fn show(&self, client: &Client, is_over: impl Fn() -> bool) -> Option<FromDaemon> {
        let Some(follower) = self.follow() else {
            let why = format!("{FOLLOWERS} clients follow what happens already, which is the most");
            return Some(failed(Failure::Refused, &why));
        };
        let mut next = None;
        loop {
            let ends = is_over();
            while let Some(event) = next.take().or_else(|| lock(&follower.queue).pop()) {
                if !client.offer(&FromDaemon::Event(event.clone())) {
                    next = Some(event);
                    break;
                }
            }
            if ends || client.is_gone() {
                return None;
            }
            if next.is_some() {
                // Its socket is full; more events change nothing about that.
                std::thread::sleep(LOOK);
                continue;
            }
            let nothing = |q: &mut Queue| q.waiting.is_empty() && q.dropped == 0;
            let queue = lock(&follower.queue);
            drop(follower.more.wait_timeout_while(queue, LOOK, nothing));
        }
    }
}

/// Makes an event of each warning in the log.
#[derive(Debug)]
pub struct Warnings(pub Arc<Events>);

impl<S: tracing::Subscriber> Layer<S> for Warnings {
    fn on_event(&self, record: &tracing::Event<'_>, _: LayerContext<'_, S>) {
        if *record.metadata().level() <= Level::WARN {
            let mut warning = event(EventKind::Warning);
            record.record(&mut Fields(&mut warning));
            self.0.tell(&warning);
        }
    }
}

/// What an event has of a record of the log.
struct Fields<'a>(&'a mut Event);

impl Visit for Fields<'_> {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "job" {
            self.0.job = Some(value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "host_vm" {
            self.0.host_vm = Some(value.into());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0.text = Some(format!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning(text: u64) -> Event {
        Event {
            job: Some(text),
            ..event(EventKind::Warning)
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_where_it_is_missing() {
        let mut queue = Queue::default();
        let all = QUEUED as u64;
        for number in 0..all + 7 {
            queue.push(&warning(number));
        }
        assert_eq!(queue.pop().unwrap().job, Some(0));
        queue.push(&warning(all + 7));
        queue.push(&warning(all + 8));
        for number in 1..all {
            assert_eq!(queue.pop().unwrap().job, Some(number));
        }
        let gap = queue.pop().unwrap();
        assert_eq!((gap.event, gap.dropped), (EventKind::Dropped, 7));
        assert_eq!(queue.pop().unwrap().job, Some(all + 7));
        // The queue had its fill again by the gap itself.
        let gap = queue.pop().unwrap();
        assert_eq!((gap.event, gap.dropped), (EventKind::Dropped, 1));
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn there_are_not_too_many_followers() {
        let events = Events::default();
        let mut all: Vec<_> = (0..FOLLOWERS).map(|_| events.follow().unwrap()).collect();
        assert!(events.follow().is_none());
        all.pop();
        assert!(events.follow().is_some());
    }
}
