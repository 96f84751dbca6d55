// SPDX-License-Identifier: GPL-2.0

//! Misbehaviour on demand: the knobs of `hw/inject.rs` and whether something happens now.
//!
//! Every knob has a generator of chances of its own, so that what one unit of the GPU does leaves
//! the sequence of another alone.

use parking_lot::Mutex;

#[path = "../../../drivers/gpu/drm/vsvm/hw/inject.rs"]
mod registers;

pub(crate) use registers::{Knob, CAPABILITY, CAPABILITY_SIZE};
use registers::{KNOBS, RANDOM};

struct State {
    values: [u32; KNOBS],
    chances: [u64; KNOBS],
}

impl State {
    fn seed(&mut self, seed: u32) {
        for (chance, knob) in self.chances.iter_mut().zip(1_u64..) {
            *chance = u64::from(seed) ^ (knob << 32);
        }
    }
}

/// The knobs.
pub(crate) struct Inject(Mutex<State>);

/// Returns the next number of a sequence of pseudo-random numbers: SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

impl Inject {
    /// Returns knobs with which nothing goes wrong, turned as `settings` say.
    pub(crate) fn new(settings: &[Setting]) -> Self {
        let mut state = State {
            values: [0; KNOBS],
            chances: [0; KNOBS],
        };
        state.seed(0);
        let inject = Self(Mutex::new(state));
        for setting in settings {
            inject.set(setting.knob, setting.value);
        }
        inject
    }

    /// Returns the value of a knob.
    pub(crate) fn get(&self, knob: Knob) -> u32 {
        self.0.lock().values[knob as usize]
    }

    /// Turns a knob.
    pub(crate) fn set(&self, knob: Knob, value: u32) {
        let mut state = self.0.lock();
        state.values[knob as usize] = value;
        if knob == Knob::Seed {
            state.seed(value);
        }
    }

    /// Returns whether what a knob stands for happens now.
    pub(crate) fn happens(&self, knob: Knob) -> bool {
        let mut state = self.0.lock();
        let State { values, chances } = &mut *state;
        match &mut values[knob as usize] {
            0 => false,
            value if *value & RANDOM != 0 => {
                let one_in = u64::from((*value & !RANDOM).max(1));
                next(&mut chances[knob as usize]) % one_in == 0
            }
            count => {
                *count -= 1;
                true
            }
        }
    }

    /// Returns garbage.
    pub(crate) fn garbage(&self, knob: Knob) -> u64 {
        next(&mut self.0.lock().chances[knob as usize])
    }
}

/// A knob with its value, as on the command line: `NAME=COUNT` or `NAME=1/N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    knob: Knob,
    value: u32,
}

impl std::str::FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
        let knob = Knob::ALL.into_iter().find(|knob| knob.name() == name);
        let Some(knob) = knob else {
            let names = Knob::ALL.map(Knob::name).join(", ");
            return Err(format!("no knob {name:?}; there are {names}"));
        };
        let (flag, number) = match value.strip_prefix("1/") {
            Some(number) => (RANDOM, number),
            None => (0, value),
        };
        let number: u32 = number.parse().map_err(|error| format!("{error}"))?;
        let value = number | flag;
        Ok(Self { knob, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_down() {
        let inject = Inject::new(&[]);
        assert!(!inject.happens(Knob::CopyError));
        inject.set(Knob::CopyError, 2);
        let got = [(); 4].map(|()| inject.happens(Knob::CopyError));
        assert_eq!(got, [true, true, false, false]);
        assert_eq!(inject.get(Knob::CopyError), 0);
    }

    #[test]
    fn chances_follow_from_the_seed() {
        let inject = Inject::new(&["lost-irq=1/4".parse().unwrap()]);
        let draw = |seed| {
            inject.set(Knob::Seed, seed);
            [(); 400].map(|()| inject.happens(Knob::LostIrq))
        };
        let first = draw(7);
        assert_ne!(first, draw(8));
        assert_eq!(first, draw(7));
        let often = first.into_iter().filter(|hit| *hit).count();
        assert!((60..140).contains(&often), "{often} of 400");
    }

    #[test]
    fn settings() {
        let parse = |text: &str| text.parse::<Setting>();
        let always = Setting {
            knob: Knob::LostIrq,
            value: RANDOM | 1,
        };
        assert_eq!(parse("lost-irq=1/1"), Ok(always));
        assert_eq!(parse("latency=50").unwrap().value, 50);
        assert!(parse("nonsense=1").unwrap_err().contains("copy-error"));
        assert!(parse("latency").is_err() && parse("latency=x").is_err());
    }

    #[test]
    fn registers_do_not_overlap() {
        for knob in Knob::ALL {
            assert_eq!(Knob::at(knob.offset()), Some(knob));
            assert!((CAPABILITY..CAPABILITY + CAPABILITY_SIZE).contains(&knob.offset()));
        }
        assert_eq!(Knob::at(CAPABILITY), None);
    }
}
