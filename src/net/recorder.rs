//! An evaluation recorded once as a graph of launches and played back, where the device has such graphs: a UNet is some
//! thousand kernels, and to launch them one by one takes longer than a fast GPU takes to run them.

use crate::Result;
use candle_core::Tensor;
#[cfg(feature = "cuda")]
use std::sync::{Mutex, PoisonError};

/// Plays one network's evaluations. It keeps the recording of the last sizes that came twice in a row.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    #[cfg(feature = "cuda")]
    state: Mutex<cuda::State>,
}

impl Recorder {
    /// What `network` makes of `settled` and `changing`, which must come in without a gradient to go on with. Tensors in
    /// `settled` are taken for the same as last time if they are the same tensors. `setting` is whatever else the answer
    /// depends on. The network may only launch kernels: it must not wait for the device, nor read from it.
    pub(super) fn play(
        &self,
        settled: &[&Tensor],
        changing: &[&Tensor],
        setting: u64,
        network: impl Fn(&[Tensor], &[Tensor]) -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        #[cfg(feature = "cuda")]
        if changing.first().is_some_and(|x| x.device().is_cuda())
            && !settled.iter().chain(changing).any(|x| x.track_op())
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            return state.play(settled, changing, setting, network);
        }
        let _ = setting;
        let owned = |all: &[&Tensor]| all.iter().map(|&x| x.clone()).collect::<Vec<_>>();
        network(&owned(settled), &owned(changing))
    }

    /// Why evaluations are not recorded although the device could: what it said when it was tried.
    pub(super) fn refusal(&self) -> Option<String> {
        #[cfg(feature = "cuda")]
        if let cuda::State::Refused(why) = &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            return Some(why.clone());
        }
        None
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use crate::Result;
    use candle_core::{Device, Tensor, TensorId};
    use pleinair_cuda::Graph;

    #[derive(Debug, Default)]
    pub(super) enum State {
        #[default]
        Nothing,
        /// Seen once, with the answer's tensors to be written by a recording: what comes twice is worth one.
        Seen(Key, Vec<Tensor>),
        Recorded(Box<Recording>),
        /// The device would not; it is not asked again.
        Refused(String),
    }

    /// Sizes of all inputs, and the setting.
    type Key = (Vec<Vec<usize>>, u64);

    #[derive(Debug)]
    pub(super) struct Recording {
        key: Key,
        /// The tensors that `settled` was filled from.
        filled_from: Vec<TensorId>,
        settled: Vec<Tensor>,
        changing: Vec<Tensor>,
        answer: Vec<Tensor>,
        graph: Graph,
    }

    fn key(settled: &[&Tensor], changing: &[&Tensor], setting: u64) -> Key {
        (settled.iter().chain(changing).map(|x| x.dims().to_vec()).collect(), setting)
    }

    fn ids(tensors: &[&Tensor]) -> Vec<TensorId> {
        tensors.iter().map(|x| x.id()).collect()
    }

    /// Copies with storage of their own.
    fn copies<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> candle_core::Result<Vec<Tensor>> {
        tensors.into_iter().map(|x| x.contiguous()?.copy()).collect()
    }

    fn fill<'a>(into: &[Tensor], from: impl IntoIterator<Item = &'a Tensor>) -> candle_core::Result<()> {
        into.iter().zip(from).try_for_each(|(into, from)| into.slice_set(&from.contiguous()?, 0, 0))
    }

    impl State {
        pub(super) fn play(
            &mut self,
            settled: &[&Tensor],
            changing: &[&Tensor],
            setting: u64,
            network: impl Fn(&[Tensor], &[Tensor]) -> Result<Vec<Tensor>>,
        ) -> Result<Vec<Tensor>> {
            let wanted = key(settled, changing, setting);
            *self = match std::mem::take(self) {
                State::Recorded(mut recording) if recording.is_for(&wanted) => {
                    match recording.play(settled, changing) {
                        Ok(answer) => {
                            *self = State::Recorded(recording);
                            return Ok(answer);
                        }
                        // the first playing takes the graph's memory, which there may not be
                        Err(why) => State::Refused(why.to_string()),
                    }
                }
                State::Seen(seen, answer) if seen == wanted => {
                    match Recording::new(wanted.clone(), settled, changing, answer, &network) {
                        Ok(recording) => {
                            let answer = copies(&recording.answer);
                            *self = State::Recorded(Box::new(recording));
                            return Ok(answer?);
                        }
                        Err(why) => State::Refused(why.to_string()),
                    }
                }
                State::Refused(why) => State::Refused(why),
                // a recording of other sizes gives its memory back
                _ => State::Nothing,
            };
            let owned = |all: &[&Tensor]| all.iter().map(|&x| x.clone()).collect::<Vec<_>>();
            let answer = network(&owned(settled), &owned(changing))?;
            if let State::Nothing = self {
                *self = State::Seen(wanted, copies(&answer)?);
            }
            Ok(answer)
        }
    }

    impl Recording {
        /// The answer to these inputs is in `answer` afterwards.
        fn new(
            key: Key,
            settled: &[&Tensor],
            changing: &[&Tensor],
            answer: Vec<Tensor>,
            network: &impl Fn(&[Tensor], &[Tensor]) -> Result<Vec<Tensor>>,
        ) -> Result<Self> {
            let device: Device = changing[0].device().clone();
            let filled_from = ids(settled);
            let (settled, changing) = (copies(settled.iter().copied())?, copies(changing.iter().copied())?);
            let graph = Graph::capture(&device, || {
                fill(&answer, &network(&settled, &changing).map_err(candle_core::Error::wrap)?)
            })?;
            Ok(Recording { key, filled_from, settled, changing, answer, graph })
        }

        fn is_for(&self, key: &Key) -> bool {
            self.key == *key && self.graph.is_of_this_thread()
        }

        /// The answer is copied: the next playing writes it anew.
        fn play(&mut self, settled: &[&Tensor], changing: &[&Tensor]) -> Result<Vec<Tensor>> {
            let given = ids(settled);
            if given != self.filled_from {
                fill(&self.settled, settled.iter().copied())?;
                self.filled_from = given;
            }
            fill(&self.changing, changing.iter().copied())?;
            self.graph.launch()?;
            Ok(copies(&self.answer)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn where_nothing_is_recorded_it_is_a_plain_call() {
        let (a, b) = (Tensor::new(&[2f32], &Device::Cpu).unwrap(), Tensor::new(&[3f32], &Device::Cpu).unwrap());
        let recorder = Recorder::default();
        for _ in 0..3 {
            let answer = recorder.play(&[&a], &[&b, &b], 7, |s, c| Ok(vec![(&s[0] * &c[1])?])).unwrap();
            assert_eq!(answer[0].to_vec1::<f32>().unwrap(), [6.0]);
        }
        assert_eq!(recorder.refusal(), None);
    }

    /// An evaluation that failed, for want of memory say, is not what a recording is made of.
    #[cfg(feature = "cuda")]
    #[test]
    fn a_failed_evaluation_leaves_nothing_behind() {
        let device = pleinair_cuda::open().unwrap();
        let recorder = Recorder::default();
        let input = |x: f32| Tensor::new(&[x], &device).unwrap();
        let fails = |_: &[Tensor], _: &[Tensor]| Err(crate::Error::Usage("out of paint".into()));
        assert!(recorder.play(&[], &[&input(1.0)], 0, fails).is_err());
        // seen, recorded, played back twice
        for x in [2.0, 3.0, 4.0, 5.0] {
            let answer = recorder.play(&[], &[&input(x)], 0, |_, c| Ok(vec![(&c[0] + &c[0])?])).unwrap();
            assert_eq!(answer[0].to_vec1::<f32>().unwrap(), [2.0 * x]);
        }
        assert_eq!(recorder.refusal(), None);
    }
}
