"""Every step and every estimator that `from_sklearn` takes, with its usual parameters: what the section `estimators` fits."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import (
    calibration,
    compose,
    decomposition,
    discriminant_analysis,
    ensemble,
    feature_selection,
    impute,
    linear_model,
    naive_bayes,
    neighbors,
    neural_network,
    svm,
    tree,
)
from sklearn import preprocessing as pre
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from training.parity import NUMBERS, STRINGS

FILL = impute.SimpleImputer
IGNORE: Any = {"handle_unknown": "ignore"}


def numbers(*steps: Any) -> compose.ColumnTransformer:
    """Put steps behind an imputer on the number columns."""
    return compose.ColumnTransformer([("numbers", make_pipeline(FILL(), *steps), NUMBERS)])


def positive(*steps: Any) -> compose.ColumnTransformer:
    """Put steps behind an imputer on the columns that hold positive numbers."""
    return compose.ColumnTransformer([("numbers", make_pipeline(FILL(), *steps), ["amount", "height"])])


def strings(*steps: Any) -> compose.ColumnTransformer:
    """Put steps on the string columns."""
    return compose.ColumnTransformer([("strings", make_pipeline(*steps), STRINGS)])


def bins(**keywords: Any) -> pre.KBinsDiscretizer:
    """Return bins that draw nothing at random."""
    return pre.KBinsDiscretizer(12, quantile_method="averaged_inverted_cdf", random_state=0, **keywords)


#: What, columns; compared are the features.
STEPS: list[tuple[str, Any]] = [
    ("`StandardScaler`", numbers(pre.StandardScaler())),
    ("`MinMaxScaler`, clipped", numbers(pre.MinMaxScaler(clip=True))),
    ("`RobustScaler`", numbers(pre.RobustScaler())),
    ("`MaxAbsScaler`", numbers(pre.MaxAbsScaler())),
    ("`StandardScaler` on sparse data", make_pipeline(strings(pre.OneHotEncoder(**IGNORE)), pre.StandardScaler(with_mean=False))),
    ("`SimpleImputer`, mean, `add_indicator`", compose.ColumnTransformer([("n", FILL(add_indicator=True), NUMBERS)])),
    ("`SimpleImputer`, median", compose.ColumnTransformer([("n", FILL(strategy="median"), NUMBERS)])),
    ("`MissingIndicator`", compose.ColumnTransformer([("n", impute.MissingIndicator(features="all"), NUMBERS)])),
    ("`OneHotEncoder`, unknown ignored", strings(pre.OneHotEncoder(**IGNORE))),
    ("`OneHotEncoder`, infrequent categories", strings(pre.OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=18))),
    ("`OrdinalEncoder`", strings(pre.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2))),
    ("`TargetEncoder`", strings(pre.TargetEncoder())),
    *((f"`KBinsDiscretizer`, {s}, {e}", numbers(bins(strategy=s, encode=e)))
      for s in ("uniform", "quantile", "kmeans") for e in ("ordinal", "onehot", "onehot-dense")),
    ("`QuantileTransformer`, uniform", numbers(pre.QuantileTransformer(n_quantiles=300))),
    ("`QuantileTransformer`, normal", numbers(pre.QuantileTransformer(n_quantiles=300, output_distribution="normal"))),
    ("`PowerTransformer`, Yeo-Johnson, not standardised", numbers(pre.PowerTransformer(standardize=False))),
    ("`PowerTransformer`, Yeo-Johnson", numbers(pre.PowerTransformer())),
    ("`PowerTransformer`, Box-Cox, not standardised", positive(pre.PowerTransformer(method="box-cox", standardize=False))),
    ("`PowerTransformer`, Box-Cox", positive(pre.PowerTransformer(method="box-cox"))),
    ("`PolynomialFeatures`, degree 3", numbers(pre.PolynomialFeatures(3))),
    ("`Binarizer`", numbers(pre.Binarizer(threshold=20.0))),
    ("`Normalizer`, l2", numbers(pre.Normalizer())),
    ("`Normalizer`, max", numbers(pre.Normalizer("max"))),
    ("`PCA`", numbers(decomposition.PCA(2))),
    ("`PCA`, whitened", numbers(pre.StandardScaler(), decomposition.PCA(2, whiten=True))),
    ("`TruncatedSVD`", strings(pre.OneHotEncoder(**IGNORE), decomposition.TruncatedSVD(5, random_state=0))),
    ("feature selectors: `SelectKBest`", numbers(feature_selection.SelectKBest(feature_selection.f_regression, k=2))),
    ("feature selectors: `VarianceThreshold`", numbers(feature_selection.VarianceThreshold(200.0))),
    ("`FunctionTransformer` without a function", numbers(pre.FunctionTransformer())),
    *((f"`FunctionTransformer`, `{f.__name__}`", positive(pre.FunctionTransformer(f)))
      for f in (np.log, np.log1p, np.log2, np.log10, np.sqrt, np.square, np.abs, np.ceil, np.floor, np.rint, np.sign, np.negative)),
    *((f"`FunctionTransformer`, `{f.__name__}`", compose.ColumnTransformer([("n", pre.FunctionTransformer(f), ["count"])]))
      for f in (np.exp, np.expm1)),
    ("`FeatureUnion` with weights, `Pipeline`", numbers(FeatureUnion(
        [("a", pre.StandardScaler()), ("b", Pipeline([("c", pre.RobustScaler())]))], transformer_weights={"a": 0.3}))),
    ("`ColumnTransformer`, names, weights, remainder", make_pipeline(compose.ColumnTransformer(
        [("a", pre.StandardScaler(), ["height"]), ("drop", "drop", STRINGS)], remainder="passthrough", transformer_weights={"a": 3},
    ), FILL())),
]  # fmt: skip

_SEED: Any = {"random_state": 0}
_VOTES = [
    ("line", linear_model.LogisticRegression(max_iter=500)),
    ("forest", ensemble.RandomForestClassifier(10, **_SEED)),
    ("bayes", naive_bayes.GaussianNB()),
]
_MEANS: Any = [("line", linear_model.Ridge()), ("forest", ensemble.RandomForestRegressor(10, **_SEED))]

CLASSIFIERS: list[Any] = [
    linear_model.LogisticRegression(max_iter=1000),
    linear_model.LogisticRegressionCV(Cs=2, cv=2, max_iter=1000, l1_ratios=(0,), use_legacy_attributes=False),
    linear_model.RidgeClassifier(),
    linear_model.RidgeClassifierCV(),
    linear_model.Perceptron(**_SEED),
    linear_model.SGDClassifier(**_SEED),
    linear_model.SGDClassifier(loss="log_loss", **_SEED),
    discriminant_analysis.LinearDiscriminantAnalysis(),
    svm.LinearSVC(**_SEED),
    svm.SVC(),
    svm.SVC(kernel="poly"),
    svm.SVC(kernel="sigmoid"),
    svm.NuSVC(nu=0.2),
    neighbors.KNeighborsClassifier(),
    naive_bayes.GaussianNB(),
    naive_bayes.BernoulliNB(),
    neural_network.MLPClassifier((16, 8), max_iter=60, **_SEED),
    neural_network.MLPClassifier((16,), activation="tanh", max_iter=60, **_SEED),
    tree.DecisionTreeClassifier(**_SEED),
    tree.ExtraTreeClassifier(**_SEED),
    ensemble.RandomForestClassifier(40, **_SEED),
    ensemble.ExtraTreesClassifier(40, **_SEED),
    ensemble.GradientBoostingClassifier(n_estimators=30, **_SEED),
    ensemble.HistGradientBoostingClassifier(max_iter=30, **_SEED),
    ensemble.VotingClassifier(_VOTES, voting="soft"),
    ensemble.VotingClassifier(_VOTES),
    ensemble.StackingClassifier(_VOTES, cv=2),
    ensemble.BaggingClassifier(n_estimators=5, **_SEED),
    calibration.CalibratedClassifierCV(svm.LinearSVC(**_SEED), cv=2),
    calibration.CalibratedClassifierCV(ensemble.RandomForestClassifier(10, **_SEED), method="isotonic", cv=2),
]
#: These take no negative features.
COUNTING: list[Any] = [naive_bayes.MultinomialNB(), naive_bayes.ComplementNB()]
REGRESSORS: list[Any] = [
    linear_model.LinearRegression(),
    linear_model.Ridge(),
    linear_model.RidgeCV(),
    linear_model.Lasso(0.01),
    linear_model.LassoCV(cv=2),
    linear_model.LassoLars(0.01),
    linear_model.LassoLarsCV(cv=2),
    linear_model.LassoLarsIC(noise_variance=1.0),
    linear_model.Lars(),
    linear_model.LarsCV(cv=2),
    linear_model.ElasticNet(0.01),
    linear_model.ElasticNetCV(cv=2),
    linear_model.BayesianRidge(),
    linear_model.ARDRegression(),
    linear_model.HuberRegressor(max_iter=1000),
    linear_model.OrthogonalMatchingPursuit(n_nonzero_coefs=4),
    linear_model.QuantileRegressor(alpha=0.01),
    linear_model.SGDRegressor(**_SEED),
    linear_model.TheilSenRegressor(max_subpopulation=50, n_subsamples=60, **_SEED),
    svm.LinearSVR(**_SEED),
    svm.SVR(),
    svm.NuSVR(),
    neighbors.KNeighborsRegressor(),
    neural_network.MLPRegressor(hidden_layer_sizes=(16,), max_iter=60, **_SEED),
    tree.DecisionTreeRegressor(**_SEED),
    tree.ExtraTreeRegressor(**_SEED),
    ensemble.RandomForestRegressor(40, **_SEED),
    ensemble.ExtraTreesRegressor(40, **_SEED),
    ensemble.GradientBoostingRegressor(n_estimators=30, **_SEED),
    ensemble.HistGradientBoostingRegressor(max_iter=30, **_SEED),
    ensemble.VotingRegressor(_MEANS),
    ensemble.StackingRegressor(_MEANS, cv=2),
    ensemble.BaggingRegressor(n_estimators=5, **_SEED),
]
#: These are trained on positive targets.
POSITIVE: list[Any] = [
    linear_model.PoissonRegressor(max_iter=1000),
    linear_model.GammaRegressor(max_iter=1000),
    linear_model.TweedieRegressor(power=1.5, max_iter=1000),
    compose.TransformedTargetRegressor(linear_model.Ridge(), func=np.log1p, inverse_func=np.expm1),
]
