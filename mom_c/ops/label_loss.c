#include "ops/label_loss.h"

#include <math.h>

static double class_loss(const mom_kernels *k, float *dlogits, const float *logits, const int32_t *classes,
                         double scale, size_t B, size_t L) {
    size_t used = 0;
    for (size_t b = 0; b < B; b++)
        used += classes[b] != MOM_IGNORED_LABEL;
    double sum = 0.0;
    for (size_t b = 0; b < B; b++) {
        const float *row = logits + b * L;
        const int ignored = classes[b] == MOM_IGNORED_LABEL;
        const double max = (double)k->vec.max(row, L);
        double total = 0.0;
        for (size_t i = 0; i < L; i++)
            total += exp((double)row[i] - max);
        if (!ignored)
            sum += log(total) - ((double)row[classes[b]] - max);
        for (size_t i = 0; dlogits && i < L; i++) {
            const double error = exp((double)row[i] - max) / total - ((size_t)classes[b] == i ? 1.0 : 0.0);
            dlogits[b * L + i] = ignored ? 0.0f : (float)(scale * error / (double)used);
        }
    }
    return used ? sum / (double)used : 0.0;
}

double mom_label_loss_compute(const mom_exec *x, float *dlogits, const float *logits, const int32_t *classes,
                              const float *values, mom_label_loss kind, float scale, size_t B, size_t L) {
    if (x->dry_run)
        return 0.0;
    if (kind == MOM_LOSS_CROSS_ENTROPY)
        return class_loss(x->k, dlogits, logits, classes, (double)scale, B, L);
    const size_t n = B * L;
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        const double z = (double)logits[i], y = (double)values[i];
        double gradient;
        if (kind == MOM_LOSS_MSE) {
            sum += (z - y) * (z - y);
            gradient = 2.0 * (z - y);
        } else {
            sum += (z > 0.0 ? z : 0.0) + log1p(exp(-fabs(z))) - y * z;
            gradient = 1.0 / (1.0 + exp(-z)) - y;
        }
        if (dlogits)
            dlogits[i] = (float)((double)scale * gradient / (double)n);
    }
    return n ? sum / (double)n : 0.0;
}
