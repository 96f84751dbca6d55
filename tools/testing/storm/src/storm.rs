// SPDX-License-Identifier: GPL-2.0
//! The storm: threads that move files to a GPU, and one that looks which files there are.

use crate::found::Places;
use crate::target::Target;
use anyhow::Context;
use anyhow::Result;
use devcache_selftests::gpu::Gpu;
use devcache_selftests::random::Random;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks which files there are.
const LOOK: Duration = Duration::from_millis(50);

/// The most files that are under the storm at a time: a process may have 65530 mappings.
const FILES: usize = 10_000;

/// How hard it blows.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Force {
    /// Threads that move pages, with the GPUs in turn.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=31))]
    movers: u16,

    /// The longest that each of them rests after a move, in microseconds.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    rest: usize,
}

/// What all threads share.
#[derive(Debug, Default)]
struct Shared {
    targets: Mutex<Vec<Arc<Target>>>,
    stop: AtomicBool,
}

/// Threads at work. They stop when this is dropped.
#[derive(Debug)]
pub(crate) struct Storm {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Shared {
    /// Does something again and again until the storm ends.
    fn repeat(&self, mut step: impl FnMut() -> Result<()>) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            step()?;
        }
        Ok(())
    }

    fn targets(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Target>>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens files that are new or have another size, and closes those that are gone.
    fn refresh(&self, places: &Places) {
        let old = self.targets().clone();
        let mut old: BTreeMap<_, _> = old.into_iter().map(|target| (target.id, target)).collect();
        let new = places
            .files()
            .into_values()
            .take(FILES)
            .filter_map(|found| {
                let same = old.remove(&found.id);
                let same = same.filter(|target| target.pages() == found.pages);
                // A file that cannot be opened or mapped is none for a GPU.
                same.or_else(|| Target::open(&found).ok().map(Arc::new))
            });
        let new = new.collect();
        *self.targets() = new;
    }

    /// Moves a part of some file, if there is one.
    fn send(&self, gpu: &Gpu, random: &mut Random) -> Result<()> {
        let targets = self.targets();
        let target = match targets.len() {
            0 => None,
            len => targets.get(random.below(len)).cloned(),
        };
        drop(targets);
        target.map_or(Ok(()), |target| target.send(gpu))
    }
}

impl Storm {
    /// Starts one on these files.
    pub(crate) fn start(places: Places, force: Force) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for number in 0..force.movers.into() {
            let gpu = Gpu::open_in_turn(number).context("open the GPU")?;
            let mut random = Random::new(number as u64);
            let shared = shared.clone();
            threads.push(thread::spawn(move || {
                shared.repeat(|| {
                    shared.send(&gpu, &mut random)?;
                    let rest = random.below(force.rest + 1) as u64;
                    thread::sleep(Duration::from_micros(rest));
                    Ok(())
                })
            }));
        }
        let looker = shared.clone();
        threads.push(thread::spawn(move || {
            looker.repeat(|| {
                looker.refresh(&places);
                thread::sleep(LOOK);
                Ok(())
            })
        }));
        Ok(Storm { shared, threads })
    }

    fn end(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let threads = self.threads.drain(..);
        let results: Vec<_> = threads
            .map(|thread| thread.join().expect("does not panic"))
            .collect();
        self.shared.targets().clear();
        results.into_iter().collect()
    }

    /// Ends it; an error if it could not go on until now.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.end()
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("devcache-storm: {error:#}");
        }
    }
}
