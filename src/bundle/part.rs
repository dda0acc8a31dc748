//! A network that gives its memory back and is loaded again when it is needed.

use crate::Result;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One network of a model.
pub struct Part<N> {
    load: Box<dyn Fn() -> Result<N> + Send + Sync>,
    network: Mutex<Option<Arc<N>>>,
}

impl<N> Part<N> {
    /// Loads it for the first time.
    ///
    /// # Errors
    /// Whatever `load` reports.
    pub fn open(load: impl Fn() -> Result<N> + Send + Sync + 'static) -> Result<Self> {
        let first = load()?;
        Ok(Part { load: Box::new(load), network: Mutex::new(Some(Arc::new(first))) })
    }

    /// To be loaded when it is first used.
    pub fn later(load: impl Fn() -> Result<N> + Send + Sync + 'static) -> Self {
        Part { load: Box::new(load), network: Mutex::new(None) }
    }

    fn network(&self) -> MutexGuard<'_, Option<Arc<N>>> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The network, loaded again if it was released.
    ///
    /// # Errors
    /// Whatever `load` reports: the model was changed while the program ran.
    pub fn get(&self) -> Result<Arc<N>> {
        let mut network = self.network();
        match &*network {
            Some(network) => Ok(network.clone()),
            None => Ok(network.insert(Arc::new((self.load)()?)).clone()),
        }
    }

    /// The network, if it is loaded.
    pub fn loaded(&self) -> Option<Arc<N>> {
        self.network().clone()
    }

    /// Gives the memory back as soon as nobody uses the network any more.
    pub fn release(&self) {
        *self.network() = None;
    }
}

impl<N> fmt::Debug for Part<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.network().is_some() { "loaded" } else { "released" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[test]
    fn a_released_part_is_loaded_once_more() {
        let loads = Arc::new(AtomicUsize::new(0));
        let part = Part::open({
            let loads = loads.clone();
            move || Ok(loads.fetch_add(1, SeqCst))
        })
        .unwrap();
        assert_eq!((*part.get().unwrap(), *part.get().unwrap(), format!("{part:?}")), (0, 0, "loaded".into()));
        let used = part.get().unwrap();
        part.release();
        assert_eq!((format!("{part:?}"), Arc::strong_count(&used)), ("released".into(), 1), "nobody else holds it");
        assert!(part.loaded().is_none());
        assert_eq!((*part.get().unwrap(), loads.load(SeqCst)), (1, 2));
    }

    #[test]
    fn what_cannot_be_loaded_again_is_an_error() {
        let loads = AtomicUsize::new(0);
        let part = Part::open(move || match loads.fetch_add(1, SeqCst) {
            0 => Ok(()),
            _ => Err(crate::Error::Usage("taken away".into())),
        })
        .unwrap();
        part.get().unwrap();
        part.release();
        assert!(part.get().unwrap_err().to_string().contains("taken away"));
    }
}
