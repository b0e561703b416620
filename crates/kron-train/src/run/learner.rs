//! [`Learner`]: a model with its trained parameters, its loss and its score.

use candle_core::{DType, Tensor, Var};
use candle_nn::{Linear, Module};
use kron_candle::{AdamW, AdamWConfig, Adapter, Adapters, Dropout, DropoutKey, Group, Inject};
use kron_core::philox;

use super::adapter_rule::AdapterRule;
use crate::config::{Config, Method, Task, Train};
use crate::data::{Batch, Dataset, Examples, Question, Row, Tokens};
use crate::error::{Result, invalid};
use crate::model::{Attention, Body, Weights, answer_loss, build, next_token_loss, pool};

/// Variable with its name in a checkpoint.
pub type NamedGroup = (String, Group);

/// Model in training.
pub struct Learner {
    body: Box<dyn Body>,
    head: Option<Linear>,
    adapters: Option<Adapters>,
    trained: Vec<NamedGroup>,
    description: String,
}

impl Learner {
    /// Builds the pretrained model with new trained parameters; equal seeds give equal initial values.
    ///
    /// # Errors
    /// The settings do not fit the model or each other.
    pub fn new(config: &Config, weights: &Weights, data: &Dataset) -> Result<Self> {
        Self::continuing(config, weights, data, None)
    }

    /// Builds the model with the factors of a trained adapter, and a new head.
    ///
    /// # Errors
    /// As [`Learner::new`], or the adapter has other layers.
    pub fn continuing(
        config: &Config,
        weights: &Weights,
        data: &Dataset,
        before: Option<Adapter>,
    ) -> Result<Self> {
        let (adapter, seed) = (&config.adapter, config.train.seed);
        let mut trained = Vec::new();
        let (mut body, adapters, description) = match AdapterRule::new(adapter, weights)? {
            Some(rule) => {
                let inject = match before {
                    Some(before) => rule.trained(before),
                    None => rule.inject(&adapter.targets, seed)?,
                };
                let body = build(weights, &inject)?;
                (body, Some(inject.finish()?), rule.describe())
            }
            None if adapter.method == Method::Full => {
                let (weights, vars) = weights.trained()?;
                let group = |var| Group::whole(var, 1.0, config.train.decay);
                for (name, var) in vars {
                    trained.push((name, group(var)?));
                }
                (build(&weights, &Inject::nothing())?, None, "every weight".into())
            }
            None => (build(weights, &Inject::nothing())?, None, "no adapter".into()),
        };
        if config.train.checkpointing {
            body.recompute()?;
        }
        for delta in adapters.iter().flat_map(Adapters::deltas) {
            let group = delta.group(config.train.lora_plus, config.train.decay)?;
            let term = if delta.term() == 0 { String::new() } else { delta.term().to_string() };
            trained.push((format!("{}.theta{term}", delta.module()), group));
        }
        let head = match config.task {
            Task::Classify => Some(new_head(config, weights, data.labels.len(), &mut trained)?),
            _ => None,
        };
        Ok(Self { body, head, adapters, trained, description })
    }

    /// Builds the model with an adapter and a head that were trained before, to use it.
    ///
    /// # Errors
    /// The adapter has other layers.
    pub fn trained_before(weights: &Weights, adapter: Option<Adapter>, head: Option<Linear>) -> Result<Self> {
        let inject = adapter.map_or_else(Inject::nothing, Inject::trained);
        let body = build(weights, &inject)?;
        let adapters = Some(inject.finish()?).filter(|adapters| !adapters.deltas().is_empty());
        let deltas = adapters.iter().flat_map(Adapters::deltas);
        let layers = deltas.filter(|delta| delta.term() == 0).count();
        Ok(Self {
            body,
            head,
            adapters,
            trained: Vec::new(),
            description: format!("adapters on {layers} layers"),
        })
    }

    /// Makes the optimizer of the trained parameters.
    ///
    /// # Errors
    /// candle fails.
    pub fn optimizer(&self, train: &Train) -> Result<AdamW> {
        let groups = self.trained().iter().map(|(_, group)| group.clone()).collect();
        let [beta1, beta2] = train.betas;
        Ok(AdamW::new(groups, AdamWConfig { beta1, beta2, eps: train.eps })?)
    }

    /// Returns the trained variables in a fixed order.
    pub fn trained(&self) -> &[NamedGroup] {
        &self.trained
    }
    /// Returns the model without its head.
    pub fn body(&self) -> &dyn Body {
        &*self.body
    }
    /// Returns the adapters.
    pub const fn adapters(&self) -> Option<&Adapters> {
        self.adapters.as_ref()
    }
    /// Returns the classification head.
    pub const fn head(&self) -> Option<&Linear> {
        self.head.as_ref()
    }
    /// Describes the method with its shapes.
    pub fn description(&self) -> &str {
        &self.description
    }
    /// Returns the number of trained parameters, without those of a head.
    pub fn body_params(&self) -> usize {
        let of_body = self.trained.iter().filter(|(name, _)| !name.starts_with("head."));
        of_body.map(|(_, group)| group.var().elem_count()).sum()
    }

    /// Returns the mean loss of some examples, and their number of tokens.
    ///
    /// Without a key the loss is for evaluation only: it gives no gradient to parameters inside the blocks.
    ///
    /// # Errors
    /// The examples belong to another task, or candle fails.
    pub fn loss(
        &self,
        examples: &Examples,
        which: &[usize],
        dropout: Option<DropoutKey>,
    ) -> Result<(Tensor, usize)> {
        match examples {
            Examples::Labelled(all) => {
                let batch = Batch::of(all, which);
                let logits = self.classes(self.head.as_ref(), &batch.tokens, dropout)?;
                let labels = Tensor::new(batch.labels.as_slice(), logits.device())?;
                Ok((candle_nn::loss::cross_entropy(&logits, &labels)?, batch.tokens.count()))
            }
            Examples::Plain(all) => {
                let rows: Vec<&[u32]> = which.iter().map(|&i| all[i].as_slice()).collect();
                let tokens = Tokens::new(&rows);
                let hidden = self.body.hidden(&tokens, dropout)?;
                let loss = next_token_loss(&*self.body, &hidden, &tokens, &vec![1; rows.len()])?;
                Ok((loss.mean_all()?, tokens.count()))
            }
            Examples::Conversations(all) => {
                let rows: Vec<&[u32]> = which.iter().map(|&i| all[i].ids.as_slice()).collect();
                let answers: Vec<&[usize]> = which.iter().map(|&i| all[i].answers.as_slice()).collect();
                let tokens = Tokens::new(&rows);
                let hidden = self.body.hidden(&tokens, dropout)?;
                let loss = answer_loss(&*self.body, &hidden, &tokens, &answers)?;
                Ok((loss.mean_all()?, tokens.count()))
            }
            Examples::Questions(all) => {
                let questions: Vec<&Question> = which.iter().map(|&i| &all[i]).collect();
                let (scores, tokens) = self.choices(questions.iter().map(|q| q.rows.as_slice()), dropout)?;
                Ok((question_loss(&scores, &questions)?, tokens))
            }
        }
    }

    /// Returns the logits of the classes, n × classes.
    pub(super) fn classes(
        &self,
        head: Option<&Linear>,
        tokens: &Tokens,
        dropout: Option<DropoutKey>,
    ) -> Result<Tensor> {
        let Some(head) = head else {
            return Err(invalid("the model has no head, but the task classify needs one"));
        };
        let pooled = pool(self.body.attention(), &self.body.hidden(tokens, dropout)?, tokens)?;
        Ok(head.forward(&pooled)?)
    }

    /// Returns the mean log-probability of each choice of each question, and the number of tokens.
    pub(super) fn choices<'a>(
        &self,
        questions: impl Iterator<Item = &'a [Row]> + Clone,
        dropout: Option<DropoutKey>,
    ) -> Result<(Vec<Tensor>, usize)> {
        let ids = |rows: &'a [Row]| rows.iter().map(|(ids, _)| ids.as_slice()).collect();
        let groups: Vec<Vec<&[u32]>> = questions.clone().map(ids).collect();
        let from: Vec<usize> = questions.clone().flatten().map(|(_, from)| *from).collect();
        let tokens = match self.shares_prefixes(dropout) {
            true => Tokens::sharing(&groups),
            false => Tokens::new(&groups.concat()),
        };
        let hidden = self.body.hidden(&tokens, dropout)?;
        let scores = next_token_loss(&*self.body, &hidden, &tokens, &from)?.neg()?;
        let mut start = 0;
        let each = questions.map(|rows| {
            let scores = scores.narrow(0, start, rows.len())?;
            start += rows.len();
            Ok(scores)
        });
        Ok((each.collect::<Result<_>>()?, tokens.count()))
    }

    /// Returns true if a token's hidden state depends only on the tokens before it.
    ///
    /// Dropout draws another mask for each row, and a shared prefix would have one for all its texts.
    fn shares_prefixes(&self, dropout: Option<DropoutKey>) -> bool {
        let mut deltas = self.adapters.iter().flat_map(Adapters::deltas);
        let drops = dropout.is_some() && deltas.any(|delta| delta.op().dropout != Dropout::NONE);
        self.body.attention() == Attention::Causal && !drops
    }
}

/// Returns the mean of −log softmax(scores)[answer] over some questions.
pub(super) fn question_loss(scores: &[Tensor], questions: &[&Question]) -> Result<Tensor> {
    let loss = |(scores, question): (&Tensor, &&Question)| {
        let logs = candle_nn::ops::log_softmax(scores, 0)?;
        Ok(logs.narrow(0, question.answer, 1)?.neg()?)
    };
    let losses = scores.iter().zip(questions).map(loss).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&losses, 0)?.mean_all()?)
}

/// Makes a head with weights uniform in ±1/√hidden and zero bias, trained unless the method is `none`.
fn new_head(
    config: &Config,
    weights: &Weights,
    classes: usize,
    trained: &mut Vec<NamedGroup>,
) -> Result<Linear> {
    let (hidden, device) = (weights.hidden(), weights.device());
    let key = [config.train.seed as u32, (config.train.seed >> 32) as u32];
    let edge = 1.0 / (hidden as f32).sqrt();
    let value = |i: usize| {
        let bits = philox([i as u32, 0, 0x6865_6164, 0], key)[0];
        edge * ((bits >> 8) as f32 / (1u32 << 23) as f32 - 1.0)
    };
    let values: Vec<f32> = (0..classes * hidden).map(value).collect();
    let weight = Var::from_vec(values, (classes, hidden), device)?;
    let bias = Var::zeros(classes, DType::F32, device)?;
    let head = Linear::new(weight.as_tensor().clone(), Some(bias.as_tensor().clone()));
    if config.adapter.method != Method::None {
        // A group's learning rate is relative to the step's.
        let own = config.train.head_lr > 0.0 && config.adapter.method != Method::Head;
        let ratio = if own { config.train.head_lr / config.train.lr } else { 1.0 };
        for (name, var) in [("head.weight", weight), ("head.bias", bias)] {
            trained.push((name.into(), Group::whole(var, ratio, 0.0)?));
        }
    }
    Ok(head)
}
