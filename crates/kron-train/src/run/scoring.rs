//! Evaluation of a [`Learner`] on a set, example by example, and its predictions.

use std::ops::Range;

use candle_core::Tensor;
use candle_nn::Linear;
use serde::{Deserialize, Serialize};

use super::learner::{Learner, question_loss};
use super::records::{Answers, Score};
use crate::data::{Batch, Examples, Inputs, Question, Row, Tokens};
use crate::error::{Error, Result};
use crate::ranks::World;

impl Learner {
    /// Evaluates a set in batches of `batch`.
    ///
    /// # Errors
    /// As [`Learner::loss`].
    pub fn score(&self, examples: &Examples, batch: usize) -> Result<Score> {
        Ok(self.answers_by(&World::alone(), self.head(), examples, batch)?.0)
    }

    /// Evaluates a set with another head, or without one.
    ///
    /// # Errors
    /// As [`Learner::loss`].
    pub fn score_with(&self, head: Option<&Linear>, examples: &Examples, batch: usize) -> Result<Score> {
        Ok(self.answers_by(&World::alone(), head, examples, batch)?.0)
    }

    /// Evaluates a set, whose batches the ranks share; returns which of its examples are answered correctly, too.
    ///
    /// # Errors
    /// As [`Learner::loss`] on any rank, or an exchange fails.
    pub(super) fn answers_over(
        &self,
        world: &World,
        examples: &Examples,
        batch: usize,
    ) -> Result<(Score, Answers)> {
        self.answers_by(world, self.head(), examples, batch)
    }

    /// Returns the logits of each text's classes, or the mean log-probability of each question's choices, for a range
    /// of inputs in batches of `batch`.
    ///
    /// # Errors
    /// As [`Learner::loss`].
    pub fn predict(&self, inputs: &Inputs, which: Range<usize>, batch: usize) -> Result<Vec<Vec<f32>>> {
        let start = which.start;
        let mut all = vec![Vec::new(); which.len()];
        let order = by_length(which, |i| match inputs {
            Inputs::Texts(texts) => texts[i].len(),
            Inputs::Questions(questions) => longest(&questions[i]),
        });
        for which in order.chunks(batch) {
            let scores = match inputs {
                Inputs::Texts(texts) => {
                    let rows: Vec<&[u32]> = which.iter().map(|&i| texts[i].as_slice()).collect();
                    self.classes(self.head(), &Tokens::new(&rows), None)?.to_vec2()?
                }
                Inputs::Questions(questions) => {
                    let (scores, _) = self.choices(which.iter().map(|&i| questions[i].as_slice()), None)?;
                    scores.iter().map(Tensor::to_vec1).collect::<Result<_, _>>()?
                }
            };
            which.iter().zip(scores).for_each(|(&i, scores)| all[i - start] = scores);
        }
        Ok(all)
    }

    fn answers_by(
        &self,
        world: &World,
        head: Option<&Linear>,
        examples: &Examples,
        batch: usize,
    ) -> Result<(Score, Answers)> {
        let order = by_length(0..examples.len(), |i| match examples {
            Examples::Labelled(all) => all[i].0.len(),
            Examples::Plain(all) => all[i].len(),
            Examples::Conversations(all) => all[i].ids.len(),
            Examples::Questions(all) => longest(&all[i].rows),
        });
        let batches: Vec<&[usize]> = order.chunks(batch).collect();
        // In turn, because the last ones are the longest.
        let own = batches.iter().skip(world.rank()).step_by(world.count());
        let own = own.map(|which| self.answered(head, examples, which)).collect::<Result<Vec<_>>>();
        let mut all: Vec<_> = world.gather("evaluation", own)?.into_iter().map(Vec::into_iter).collect();
        let count = all.len();
        let in_order = (0..batches.len()).filter_map(|i| all[i % count].next());
        let (mut loss, mut answers) = (0.0, Answers::default());
        for (which, answered) in batches.iter().zip(in_order) {
            loss += which.len() as f64 * f64::from(f32::from_bits(answered.loss));
            for (all, some) in
                [(&mut answers.right, &answered.right), (&mut answers.right_by_sum, &answered.right_by_sum)]
            {
                if !some.is_empty() {
                    all.resize(examples.len(), false);
                }
                which.iter().zip(some).for_each(|(&i, right)| all[i] = *right);
            }
        }
        let n = examples.len() as f64;
        let right = answers.right.iter().filter(|right| **right).count();
        let accuracy = (!answers.right.is_empty()).then_some(right as f64 / n);
        Ok((Score { loss: loss / n, accuracy }, answers))
    }

    /// Evaluates one batch.
    fn answered(&self, head: Option<&Linear>, examples: &Examples, which: &[usize]) -> Result<Answered> {
        let bits = |loss: &Tensor| Ok::<_, Error>(loss.to_scalar::<f32>()?.to_bits());
        match examples {
            Examples::Labelled(all) => {
                let batch = Batch::of(all, which);
                let logits = self.classes(head, &batch.tokens, None)?.detach();
                let labels = Tensor::new(batch.labels.as_slice(), logits.device())?;
                let loss = bits(&candle_nn::loss::cross_entropy(&logits, &labels)?)?;
                let guesses: Vec<u32> = logits.argmax(1)?.to_vec1()?;
                let right = guesses.iter().zip(&batch.labels).map(|(guess, label)| guess == label);
                Ok(Answered { loss, right: right.collect(), right_by_sum: Vec::new() })
            }
            Examples::Plain(_) | Examples::Conversations(_) => {
                Ok(Answered { loss: bits(&self.loss(examples, which, None)?.0)?, ..Answered::default() })
            }
            Examples::Questions(all) => {
                let questions: Vec<&Question> = which.iter().map(|&i| &all[i]).collect();
                let (scores, _) = self.choices(questions.iter().map(|q| q.rows.as_slice()), None)?;
                let mut answered =
                    Answered { loss: bits(&question_loss(&scores, &questions)?)?, ..Answered::default() };
                for (scores, question) in scores.iter().zip(questions) {
                    let means: Vec<f32> = scores.to_vec1()?;
                    answered.right.push(first_best(&means) == question.answer);
                    answered.right_by_sum.push(first_best(&sums(&means, &question.rows)) == question.answer);
                }
                Ok(answered)
            }
        }
    }
}

/// Evaluation of one batch.
#[derive(Default, Deserialize, Serialize)]
struct Answered {
    /// Bits of the mean loss, which may be NaN.
    loss: u32,
    /// Correct answers, in the order of the batch.
    right: Vec<bool>,
    right_by_sum: Vec<bool>,
}

/// Returns each choice's log-probability from its mean over the choice's tokens.
fn sums(means: &[f32], rows: &[Row]) -> Vec<f32> {
    means.iter().zip(rows).map(|(mean, (ids, from))| mean * (ids.len() - from) as f32).collect()
}

/// Returns the index of the largest value, the first of equal ones.
fn first_best(values: &[f32]) -> usize {
    let better = |best: usize, i: usize| if values[i] > values[best] { i } else { best };
    (1..values.len()).fold(0, better)
}

/// Sorts indices from the shortest example to the longest, so that batches have little padding.
fn by_length(which: Range<usize>, len: impl Fn(usize) -> usize) -> Vec<usize> {
    let mut order: Vec<usize> = which.collect();
    order.sort_by_key(|&i| len(i));
    order
}

/// Returns the length of a question with its longest choice.
fn longest(rows: &[Row]) -> usize {
    rows.iter().map(|(ids, _)| ids.len()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_of_more_tokens_has_the_smaller_sum() {
        let rows: Vec<Row> = vec![(vec![1, 2, 3], 2), (vec![1, 2, 3, 4, 5], 2)];
        let means = [-1.5, -1.0];
        assert_eq!(sums(&means, &rows), [-1.5, -3.0]);
        assert_eq!((first_best(&means), first_best(&sums(&means, &rows))), (1, 0));
        assert_eq!(first_best(&[2.0, 3.0, 3.0]), 1);
    }
}
