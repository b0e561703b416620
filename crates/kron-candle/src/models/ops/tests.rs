//! Values and gradients of the fused ops beside the same functions out of candle's own.

use crate::KronLinear;
use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use candle_nn::Linear;

use super::*;
use crate::models::body::Attention;
use crate::models::rope::{Rope, Rotation};
use crate::models::tokens::{Segment, Tokens};

fn var(shape: &[usize], seed: u64) -> Var {
    let shape = Shape::from(shape);
    let values = (0..shape.elem_count() as u64).map(|i| ((i * 7919 + seed * 131) % 997) as f32 / 250.0 - 2.0);
    let tensor = Tensor::from_iter(values, &Device::Cpu).and_then(|t| t.reshape(shape));
    Var::from_tensor(&tensor.expect("values")).expect("a variable")
}

/// Compares values and gradients of two ways to compute the same function.
fn agree(vars: &[&Var], ours: &dyn Fn() -> Result<Tensor>, theirs: &dyn Fn() -> Result<Tensor>) {
    let run = |f: &dyn Fn() -> Result<Tensor>| -> Result<Vec<Tensor>> {
        let y = f()?;
        let grads = (y.sqr()? + y.sin()?)?.sum_all()?.backward()?;
        let grads = vars.iter().map(|v| grads.get(v).expect("a gradient").clone());
        Ok([y.clone()].into_iter().chain(grads).collect())
    };
    for (i, (a, b)) in run(ours).expect("ours").iter().zip(run(theirs).expect("theirs")).enumerate() {
        let largest = |t: Tensor| t.abs()?.max_all()?.to_scalar::<f32>();
        let (difference, size) = (largest((a - &b).expect("sizes")).expect("max"), largest(b).expect("max"));
        assert!(size > 0.01 && difference < 2e-5 * size.max(1.0), "result {i}: {difference} of {size}");
    }
}

#[test]
fn gelu_is_candles() {
    let x = var(&[7, 33], 1);
    // candle's own derivative has constants of six digits; through erf it is exact.
    let theirs = || {
        let phi = ((x.as_tensor() / 2f64.sqrt())?.erf()? + 1.0)? * 0.5;
        x.as_tensor() * phi?
    };
    agree(&[&x], &|| gelu(&x), &theirs);
    agree(&[&x], &|| composed::gelu(&x), &theirs);
}

#[test]
fn layer_norm_is_the_long_form() {
    let (x, w, b) = (var(&[3, 5, 24], 2), var(&[24], 3), var(&[24], 4));
    let theirs = || candle_nn::ops::layer_norm_slow(&x, &w, &b, 1e-5);
    agree(&[&x, &w, &b], &|| layer_norm(&x, &w, &b, 1e-5), &theirs);
}

#[test]
fn rms_norm_is_the_long_form() {
    let (x, w) = (var(&[3, 5, 27], 2), var(&[27], 3));
    agree(&[&x, &w], &|| rms_norm(&x, &w, 1e-5), &|| composed::rms_norm(&x, &w, 1e-5));
}

#[test]
fn swiglu_is_the_long_form() {
    let (gate, up) = (var(&[4, 5, 2049], 2), var(&[4, 5, 2049], 3));
    agree(&[&gate, &up], &|| swiglu(&gate, &up), &|| composed::swiglu(&gate, &up));
    agree(&[&gate], &|| swiglu(&gate, &gate), &|| composed::swiglu(&gate, &gate));
}

#[test]
fn geglu_is_the_long_form() {
    let x = var(&[3, 5, 2 * 1021], 2);
    agree(&[&x], &|| geglu(&x), &|| composed::geglu(&x));
    assert!(geglu(&x.narrow(2, 0, 7).expect("columns")).expect_err("7").to_string().contains("[3, 5, 7]"));
}

/// One weight for all heads of a row, which is as wide as several of them.
#[test]
fn head_norm_is_the_norm_of_each_head() {
    let (x, w) = (var(&[2, 7, 3 * 12], 2), var(&[12], 3));
    let each = || {
        let heads: Vec<Tensor> = (0..3)
            .map(|head| composed::rms_norm(&x.narrow(2, 12 * head, 12)?, &w, 1e-5))
            .collect::<Result<_>>()?;
        Tensor::cat(&heads, 2)
    };
    agree(&[&x, &w], &|| head_norm(&x, &w, 1e-5), &each);
    let dy = var(&[2, 7, 3 * 12], 5);
    let dx = head_norm_backward(&x, &w, 1e-5, &dy).expect("a gradient");
    let sum = each().and_then(|y| (y * dy.as_tensor())?.sum_all()).expect("a sum");
    let want = sum.backward().expect("gradients").get(&x).expect("of x").clone();
    let difference = (dx - &want).and_then(|d| d.abs()?.max_all()?.to_scalar::<f32>()).expect("a number");
    assert!(difference < 2e-5, "{difference}");
    assert!(head_norm(&x, &var(&[5], 1), 1e-5).is_err());
}

fn rotation(len: usize, width: usize, dtype: DType) -> Result<Rotation> {
    let frequencies = (0..width / 2).map(|i| 0.3 / (i + 1) as f64).collect();
    let like = Tensor::zeros(1, dtype, &Device::Cpu)?;
    Ok(Rope::new(frequencies).rotation(len, &like).expect("tables"))
}

/// Makes the mask of texts in rows of their own.
fn mask(lens: &[usize], past: usize, attention: Attention) -> AttentionMask {
    let rows = lens.iter().enumerate().map(|(row, &len)| vec![Segment::whole(row, len)]);
    AttentionMask::new(rows.collect(), past, attention)
}

/// Zeroes the rows of padding, which the fused op leaves at 0.
fn without_padding(y: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
    let (n, queries, _) = y.dims3()?;
    let real = (0..n * queries).map(|i| f32::from(u8::from(i % queries < mask.queries(i / queries))));
    y.broadcast_mul(&Tensor::from_iter(real, y.device())?.reshape((n, queries, 1))?)
}

/// Ragged texts, shared heads, with and without rotation and cache, and more queries than are computed at once.
#[test]
fn attention_is_the_long_form() -> Result<()> {
    let cases = [
        (vec![5, 3], 5, 0, Heads { queries: 4, keys: 2, width: 6 }),
        (vec![4, 4, 1], 4, 0, Heads { queries: 3, keys: 3, width: 4 }),
        (vec![7, 7], 3, 4, Heads { queries: 6, keys: 2, width: 4 }),
        (vec![150, 131], 150, 0, Heads { queries: 2, keys: 1, width: 2 }),
    ];
    for (lens, queries, past, heads) in cases {
        let (n, keys) = (lens.len(), past + queries);
        let q = var(&[n, queries, heads.queries * heads.width], 1);
        let (k, v) =
            (var(&[n, keys, heads.keys * heads.width], 2), var(&[n, keys, heads.keys * heads.width], 3));
        let turned = rotation(keys, heads.width, DType::F32)?;
        for attention_kind in [Attention::Causal, Attention::Bidirectional] {
            for rotation in [None, Some(&turned)] {
                let mask = mask(&lens, past, attention_kind);
                let run =
                    |of: fn([&Tensor; 3], Heads, Option<&Rotation>, &AttentionMask) -> Result<Tensor>| {
                        without_padding(&of([&q, &k, &v], heads, rotation, &mask)?, &mask)
                    };
                agree(&[&q, &k, &v], &|| run(attention), &|| run(composed::attention));
            }
        }
    }
    Ok(())
}

/// Reaches below and above the number of queries that are computed at once, and beyond the text.
#[test]
fn local_attention_is_the_long_form() -> Result<()> {
    let heads = Heads { queries: 4, keys: 2, width: 6 };
    let (lens, len) = ([211, 3, 150], 211);
    let sized = |count: usize, seed| var(&[lens.len(), len, count * heads.width], seed);
    let (q, k, v) = (sized(heads.queries, 1), sized(heads.keys, 2), sized(heads.keys, 3));
    let turned = rotation(len, heads.width, DType::F32)?;
    for reach in [1, 40, 64, 100, 300] {
        let mask = AttentionMask::local(&lens, reach);
        let run = |of: fn([&Tensor; 3], Heads, Option<&Rotation>, &AttentionMask) -> Result<Tensor>| {
            without_padding(&of([&q, &k, &v], heads, Some(&turned), &mask)?, &mask)
        };
        agree(&[&q, &k, &v], &|| run(attention), &|| run(composed::attention));
        // The last text's token 75 sees tokens 75 − reach to 75 + reach.
        let y = run(attention)?.narrow(0, 2, 1)?.narrow(1, 75, 1)?;
        let grads = y.sqr()?.sum_all()?.backward()?;
        let of_v = grads.get(&v).expect("a gradient").get(2)?.abs()?.sum(1)?.to_vec1::<f32>()?;
        for (at, size) in of_v.iter().enumerate() {
            assert_eq!(*size > 0.0, at < 150 && at.abs_diff(75) <= reach, "reach {reach}, token {at}");
        }
    }
    Ok(())
}

/// Texts that share prefixes attend as in rows of their own; some prefixes and texts have more queries than are
/// computed at once.
#[test]
fn segments_attend_as_texts_in_rows_of_their_own() -> Result<()> {
    let text =
        |prefix: u32, first: u32, own: u32| (0..prefix).chain(first..first + own).collect::<Vec<u32>>();
    let groups = [
        vec![text(7, 20, 3), text(7, 30, 1), text(7, 40, 5)],
        vec![text(0, 1, 4), text(0, 2, 2)],
        vec![text(150, 1000, 2), text(150, 2000, 131)],
        vec![text(2, 60, 3), text(2, 70, 3)],
    ];
    let (packed, rows) = (Tokens::sharing(&groups), Tokens::new(&groups.concat()));
    assert!(packed.count() < rows.count() && packed.rows() < rows.rows());
    // Where each token of the rows is in the packed ones; padding takes any.
    let mut places = vec![0; rows.ids.len()];
    for (own, text) in rows.texts.iter().zip(&packed.texts) {
        (0..text.count()).for_each(|at| places[rows.index(own, at)] = packed.index(text, at) as u32);
    }
    let places = Tensor::new(places, &Device::Cpu)?;
    let apart = |x: &Tensor| -> Result<Tensor> {
        x.flatten(0, 1)?.index_select(&places, 0)?.reshape((rows.rows(), rows.len, x.dim(2)?))
    };
    let heads = Heads { queries: 4, keys: 2, width: 6 };
    let sized = |count: usize, seed| var(&[packed.rows(), packed.len, count * heads.width], seed);
    let (q, k, v) = (sized(heads.queries, 1), sized(heads.keys, 2), sized(heads.keys, 3));
    let turned = rotation(rows.len, heads.width, DType::F32)?;
    let together = AttentionMask::new(packed.segments(), 0, Attention::Causal);
    let each = mask(&rows.lens, 0, Attention::Causal);
    for rotation in [None, Some(&turned)] {
        for of in [attention, composed::attention] {
            let ours = || without_padding(&apart(&of([&q, &k, &v], heads, rotation, &together)?)?, &each);
            let qkv = || Ok::<_, candle_core::Error>([apart(&q)?, apart(&k)?, apart(&v)?]);
            let theirs = || {
                let [q, k, v] = qkv()?;
                without_padding(&of([&q, &k, &v], heads, rotation, &each)?, &each)
            };
            agree(&[&q, &k, &v], &ours, &theirs);
        }
    }
    Ok(())
}

#[test]
fn attention_gives_masked_keys_no_weight() -> Result<()> {
    let heads = Heads { queries: 2, keys: 1, width: 4 };
    let (q, k, v) = (var(&[1, 6, 8], 1), var(&[1, 6, 4], 2), var(&[1, 6, 4], 3));
    let mask = mask(&[4], 0, Attention::Causal);
    for of in [attention, composed::attention] {
        let y = of([&q, &k, &v], heads, None, &mask)?.narrow(1, 0, 2)?;
        let grads = y.sqr()?.sum_all()?.backward()?;
        for var in [&k, &v] {
            let later = grads.get(var).expect("a gradient").narrow(1, 2, 4)?;
            assert_eq!(later.abs()?.max_all()?.to_scalar::<f32>()?, 0.0);
        }
    }
    let wrong = attention([&q, &k, &k.narrow(1, 0, 5)?], heads, None, &mask).expect_err("5 values of 6 keys");
    assert!(wrong.to_string().contains("[1, 5, 4]"), "{wrong}");
    Ok(())
}

#[test]
fn output_loss_is_the_long_form() -> Result<()> {
    let (hidden, weight) = (var(&[13, 24], 1), var(&[50, 24], 2));
    let targets: Vec<u32> = (0..13).map(|i| (i * 17 + 3) % 50).collect();
    let frozen: KronLinear = Linear::new(weight.as_tensor().detach(), None).into();
    let long = || composed::output_loss(&hidden.as_tensor().matmul(&weight.t()?)?, &targets);
    agree(&[&hidden], &|| output_loss(&hidden, &frozen, &targets), &long);
    // One row, two rows and all rows at a time: the result has no trace of it.
    for limit in [1, 100, 12 * 50, 13 * 50] {
        agree(&[&hidden], &|| output_loss::output_loss_within(limit, &hidden, &frozen, &targets), &long);
    }
    // A trained weight has a gradient, too.
    let trained: KronLinear = Linear::new(weight.as_tensor().clone(), None).into();
    agree(&[&hidden, &weight], &|| output_loss(&hidden, &trained, &targets), &long);
    let evaluated = output_loss(&hidden.as_tensor().detach(), &frozen, &targets)?;
    let difference = (evaluated - long()?)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(difference < 1e-5, "{difference}");
    assert!(
        output_loss(&hidden, &frozen, &[50; 13]).expect_err("50 of 50").to_string().contains("50 token ids")
    );
    assert!(output_loss(&hidden, &frozen, &[1; 12]).is_err());
    Ok(())
}

/// Half precision takes the composed ops, which compute in float32: the only loss is the rounding of the
/// operands and of the result.
#[test]
fn half_precision_loses_its_roundings_alone() -> Result<()> {
    let (x, w, b) = (var(&[2, 4, 4], 6), var(&[4], 7), var(&[4], 8));
    let mask = mask(&[3, 4], 0, Attention::Causal);
    let heads = Heads { queries: 2, keys: 2, width: 2 };
    type Of<'a> = &'a dyn Fn(&Var) -> Result<Tensor>;
    type Way<'a> = &'a dyn Fn(Of) -> Result<Tensor>;
    let ways: [(Way, f32); 6] = [
        (&|of| geglu(&of(&x)?)?.repeat((1, 1, 2)), 6.0),
        (&|of| gelu(&of(&x)?), 4.0),
        (&|of| layer_norm(&of(&x)?, &of(&w)?, &of(&b)?, 1e-5), 4.0),
        (&|of| rms_norm(&of(&x)?, &of(&w)?, 1e-5), 4.0),
        (&|of| swiglu(&of(&x)?, &of(&x)?), 4.0),
        (&|of| attention([&of(&x)?, &of(&x)?, &of(&x)?], heads, None, &mask), 12.0),
    ];
    for (i, (way, roundings)) in ways.into_iter().enumerate() {
        for (dtype, roundoff) in [(DType::F16, 4.9e-4), (DType::BF16, 3.9e-3)] {
            let half = way(&|var| var.to_dtype(dtype))?;
            assert_eq!(half.dtype(), dtype);
            // Both take operands rounded to the half type; padding is not compared.
            let full = way(&|var| var.to_dtype(dtype)?.to_dtype(DType::F32))?;
            let difference = without_padding(&(half.to_dtype(DType::F32)? - &full)?, &mask)?;
            let difference = difference.abs()?.max_all()?.to_scalar::<f32>()?;
            let size = full.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(
                difference > 0.0 && difference <= roundings * roundoff * size,
                "op {i}, {dtype:?}: {difference} of {size}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_residual_sum_is_candles() {
    let (x, y) = (var(&[3, 7, 5000], 4), var(&[3, 7, 5000], 5));
    agree(&[&x, &y], &|| add(&x, &y), &|| x.as_tensor() + y.as_tensor());
    agree(&[&x], &|| add(&x, &x), &|| x.as_tensor() + x.as_tensor());
}
