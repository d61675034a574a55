/* The kernels of a network in C99, for one sample. Each has the names of the module and of the
   kernel that it restates, and reads the columns of that kernel's row in their order: a[0], a[1], … */

static long count(double value) { return (long)value; }

/* a: bias rows n_in n_out stride */
static void dense_forward(const op_t *op, const memory_t *m) {
    const long n_in = count(op->a[2]), n_out = count(op->a[3]), stride = count(op->a[4]);
    const real *w = m->params + op->w;
    for (long r = 0; r < count(op->a[1]); r++) {
        const real *x = m->acts + op->x + r * n_in;
        real *y = m->acts + op->y + r * stride;
        for (long j = 0; j < stride; j++)
            y[j] = j < n_out && op->a[0] != 0 ? w[n_in * n_out + j] : 0;
        for (long k = 0; k < n_in; k++)
            for (long j = 0; j < n_out; j++)
                y[j] += x[k] * w[k * n_out + j];
    }
}

static void dense_backward(const op_t *op, const memory_t *m) {
    const long n_in = count(op->a[2]), n_out = count(op->a[3]), stride = count(op->a[4]);
    const real *w = m->params + op->w;
    for (long r = 0; r < count(op->a[1]); r++) {
        const real *dy = m->deltas + op->y + r * stride;
        for (long k = 0; k < n_in; k++) {
            real total = 0;
            for (long j = 0; j < n_out; j++)
                total += w[k * n_out + j] * dy[j];
            m->deltas[op->x + r * n_in + k] = total;
        }
    }
}

static void dense_accumulate_gradient(const op_t *op, const memory_t *m) {
    const long n_in = count(op->a[2]), n_out = count(op->a[3]), stride = count(op->a[4]);
    real *dw = m->grads + op->w;
    for (long r = 0; r < count(op->a[1]); r++) {
        const real *x = m->acts + op->x + r * n_in, *dy = m->deltas + op->y + r * stride;
        for (long k = 0; k < n_in + count(op->a[0]); k++)
            for (long j = 0; j < n_out; j++)
                dw[k * n_out + j] += k < n_in ? x[k] * dy[j] : dy[j];
    }
}

/* What a convolution does for one output and its bias. verb: 0 forward, 1 backward, 2 gradient */
static void convolution_bias(const memory_t *m, int verb, long y, long bias, int has_bias) {
    if (verb == 0)
        m->acts[y] = has_bias ? m->params[bias] : 0;
    else if (verb == 2 && has_bias)
        m->grads[bias] += m->deltas[y];
}

/* The same for one of its products: an input, an output and a weight. */
static void convolution_term(const memory_t *m, int verb, long x, long y, long w) {
    if (verb == 0)
        m->acts[y] += m->acts[x] * m->params[w];
    else if (verb == 1)
        m->deltas[x] += m->deltas[y] * m->params[w];
    else
        m->grads[w] += m->deltas[y] * m->acts[x];
}

/* a: bias height width c_in out_height out_width c_out kernel_h kernel_w stride_row stride_col
   dilation_row dilation_col groups */
static void conv2d_walk(const op_t *op, const memory_t *m, int verb) {
    const double *a = op->a;
    const long width = count(a[2]), c_in = count(a[3]), c_out = count(a[6]);
    const long channels = c_in / count(a[13]), filters = c_out / count(a[13]);
    for (long h = 0; h < count(a[4]); h++)
        for (long v = 0; v < count(a[5]); v++)
            for (long o = 0; o < c_out; o++) {
                const long y = op->y + (h * count(a[5]) + v) * c_out + o;
                const long bias = op->w + op->n_weights + o;
                convolution_bias(m, verb, y, bias, a[0] != 0);
                for (long r = 0; r < count(a[7]); r++)
                    for (long s = 0; s < count(a[8]); s++)
                        for (long c = 0; c < channels; c++) {
                            const long row = h * count(a[9]) + r * count(a[11]);
                            const long col = v * count(a[10]) + s * count(a[12]);
                            const long in = o / filters * channels + c;
                            const long x = op->x + (row * width + col) * c_in + in;
                            const long tap = (r * count(a[8]) + s) * channels + c;
                            const long w = op->w + tap * c_out + o;
                            convolution_term(m, verb, x, y, w);
                        }
            }
}

static void conv2d_forward(const op_t *op, const memory_t *m) { conv2d_walk(op, m, 0); }

static void conv2d_backward(const op_t *op, const memory_t *m) {
    for (long k = 0; k < op->n_in; k++)
        m->deltas[op->x + k] = 0;
    conv2d_walk(op, m, 1);
}

static void conv2d_accumulate_gradient(const op_t *op, const memory_t *m) { conv2d_walk(op, m, 2); }

/* a: bias height width channels out_height out_width kernel_h kernel_w stride_row stride_col
   dilation_row dilation_col */
static void conv2d_depthwise_walk(const op_t *op, const memory_t *m, int verb) {
    const double *a = op->a;
    const long channels = count(a[3]), taps = count(a[6]) * count(a[7]);
    for (long k = 0; k < op->n_out; k++) {
        const long pixel = k / channels, c = k % channels, y = op->y + k;
        const long h = pixel / count(a[5]), v = pixel % count(a[5]);
        const long bias = op->w + op->n_weights + c;
        convolution_bias(m, verb, y, bias, a[0] != 0);
        for (long tap = 0; tap < taps; tap++) {
            const long row = h * count(a[8]) + tap / count(a[7]) * count(a[10]);
            const long col = v * count(a[9]) + tap % count(a[7]) * count(a[11]);
            const long x = op->x + (row * count(a[2]) + col) * channels + c;
            const long w = op->w + tap * channels + c;
            convolution_term(m, verb, x, y, w);
        }
    }
}

static void conv2d_depthwise_forward(const op_t *op, const memory_t *m) {
    conv2d_depthwise_walk(op, m, 0);
}

static void conv2d_depthwise_backward(const op_t *op, const memory_t *m) {
    for (long k = 0; k < op->n_in; k++)
        m->deltas[op->x + k] = 0;
    conv2d_depthwise_walk(op, m, 1);
}

static void conv2d_depthwise_accumulate_gradient(const op_t *op, const memory_t *m) {
    conv2d_depthwise_walk(op, m, 2);
}

/* a: height row_stride top left_elements padded_row_stride */
static void window_pad_forward(const op_t *op, const memory_t *m) {
    const long stride = count(op->a[1]);
    for (long j = 0; j < op->n_out; j++)
        m->acts[op->y + j] = 0;
    for (long row = 0; row < count(op->a[0]); row++)
        for (long j = 0; j < stride; j++)
            m->acts[op->y + count(op->a[3]) + (row + count(op->a[2])) * count(op->a[4]) + j] =
                m->acts[op->x + row * stride + j];
}

static void window_pad_backward(const op_t *op, const memory_t *m) {
    const long stride = count(op->a[1]);
    for (long row = 0; row < count(op->a[0]); row++)
        for (long j = 0; j < stride; j++)
            m->deltas[op->x + row * stride + j] =
                m->deltas[op->y + count(op->a[3]) + (row + count(op->a[2])) * count(op->a[4]) + j];
}

/* a: height width channels out_height out_width size_h size_w stride_row stride_col top left power.
   kind: 0 max, 1 mean, 2 power mean */
static void pool2d_walk(const op_t *op, const memory_t *m, int kind, int backward) {
    const double *a = op->a;
    const long channels = count(a[2]);
    for (long k = 0; backward && k < op->n_in; k++)
        m->deltas[op->x + k] = 0;
    for (long h = 0; h < count(a[3]); h++)
        for (long v = 0; v < count(a[4]); v++)
            for (long c = 0; c < channels; c++) {
                const long y = op->y + (h * count(a[4]) + v) * channels + c;
                const long top = h * count(a[7]) - count(a[9]);
                const long left = v * count(a[8]) - count(a[10]);
                const real p = (real)a[11];
                real total = 0;
                long first = -1, pixels = 0;
                for (int again = 0; again <= backward; again++)
                    for (long row = top; row < top + count(a[5]); row++)
                        for (long col = left; col < left + count(a[6]); col++) {
                            const long x = (row * count(a[1]) + col) * channels + c;
                            if (row < 0 || row >= count(a[0]) || col < 0 || col >= count(a[1]))
                                continue;
                            if (again == 0) {
                                const real value = m->acts[op->x + x];
                                pixels++;
                                if (first < 0 || value > m->acts[op->x + first])
                                    first = x;
                                if (!backward)
                                    total += kind == 2 ? POW(FABS(value), p) : value;
                            } else if (kind == 1)
                                m->deltas[op->x + x] += m->deltas[y] / (real)pixels;
                            else if (kind == 2 && m->acts[y] != 0) {
                                const real value = m->acts[op->x + x];
                                const real slope = POW(FABS(value) / m->acts[y], p - 1);
                                m->deltas[op->x + x] += m->deltas[y] * (value < 0 ? -slope : slope);
                            } else if (kind == 0 && x == first)
                                m->deltas[op->x + x] += m->deltas[y];
                        }
                if (!backward)
                    m->acts[y] = kind == 0 ? m->acts[op->x + first]
                                           : kind == 1 ? total / (real)pixels : POW(total, 1 / p);
            }
}

static void pool2d_max_forward(const op_t *op, const memory_t *m) { pool2d_walk(op, m, 0, 0); }

static void pool2d_max_backward(const op_t *op, const memory_t *m) { pool2d_walk(op, m, 0, 1); }

static void pool2d_mean_forward(const op_t *op, const memory_t *m) { pool2d_walk(op, m, 1, 0); }

static void pool2d_mean_backward(const op_t *op, const memory_t *m) { pool2d_walk(op, m, 1, 1); }

static void pool2d_lp_forward(const op_t *op, const memory_t *m) { pool2d_walk(op, m, 2, 0); }

static void pool2d_lp_backward(const op_t *op, const memory_t *m) { pool2d_walk(op, m, 2, 1); }

/* a: channels epsilon momentum */
static void batch_norm_running_forward(const op_t *op, const memory_t *m) {
    const long channels = count(op->a[0]);
    const real *w = m->params + op->w, *mean = m->params + op->buffers;
    for (long p = 0; p < op->n_in; p++) {
        const long c = p % channels;
        const real scale = 1 / SQRT(mean[channels + c] + (real)op->a[1]);
        m->acts[op->y + p] = w[c] * (m->acts[op->x + p] - mean[c]) * scale + w[channels + c];
    }
}

static void batch_norm_running_backward(const op_t *op, const memory_t *m) {
    const long channels = count(op->a[0]);
    const real *w = m->params + op->w, *variance = m->params + op->buffers + channels;
    for (long p = 0; p < op->n_in; p++) {
        const long c = p % channels;
        m->deltas[op->x + p] = w[c] / SQRT(variance[c] + (real)op->a[1]) * m->deltas[op->y + p];
    }
}

static void batch_norm_running_accumulate_gradient(const op_t *op, const memory_t *m) {
    const long channels = count(op->a[0]);
    const real *mean = m->params + op->buffers;
    for (long p = 0; p < op->n_in; p++) {
        const long c = p % channels;
        const real scale = 1 / SQRT(mean[channels + c] + (real)op->a[1]);
        const real dy = m->deltas[op->y + p];
        m->grads[op->w + c] += dy * (m->acts[op->x + p] - mean[c]) * scale;
        m->grads[op->w + channels + c] += dy;
    }
}

static real layer_norm_moments(const op_t *op, const real *x, real *scale) {
    const long channels = count(op->a[0]);
    real mean = 0, squares = 0;
    for (long c = 0; c < channels; c++)
        mean += x[c];
    mean /= (real)channels;
    for (long c = 0; c < channels; c++)
        squares += (x[c] - mean) * (x[c] - mean);
    *scale = 1 / SQRT(squares / (real)channels + (real)op->a[1]);
    return mean;
}

static void layer_norm_forward(const op_t *op, const memory_t *m) {
    const long channels = count(op->a[0]);
    const real *w = m->params + op->w;
    for (long p = 0; p < op->n_in; p += channels) {
        const real *x = m->acts + op->x + p;
        real scale, mean = layer_norm_moments(op, x, &scale);
        for (long c = 0; c < channels; c++)
            m->acts[op->y + p + c] = w[c] * (x[c] - mean) * scale + w[channels + c];
    }
}

static void layer_norm_backward(const op_t *op, const memory_t *m) {
    const long channels = count(op->a[0]);
    const real *w = m->params + op->w;
    for (long p = 0; p < op->n_in; p += channels) {
        const real *x = m->acts + op->x + p, *dy = m->deltas + op->y + p;
        real scale, mean = layer_norm_moments(op, x, &scale), sum = 0, dot = 0;
        for (long c = 0; c < channels; c++) {
            sum += w[c] * dy[c];
            dot += w[c] * dy[c] * (x[c] - mean) * scale;
        }
        for (long c = 0; c < channels; c++)
            m->deltas[op->x + p + c] =
                scale * (w[c] * dy[c] - (sum + (x[c] - mean) * scale * dot) / (real)channels);
    }
}

static void layer_norm_accumulate_gradient(const op_t *op, const memory_t *m) {
    const long channels = count(op->a[0]);
    for (long p = 0; p < op->n_in; p += channels) {
        const real *x = m->acts + op->x + p, *dy = m->deltas + op->y + p;
        real scale, mean = layer_norm_moments(op, x, &scale);
        for (long c = 0; c < channels; c++) {
            m->grads[op->w + c] += dy[c] * (x[c] - mean) * scale;
            m->grads[op->w + channels + c] += dy[c];
        }
    }
}

static void activations_sigmoid_forward(const op_t *op, const memory_t *m) {
    for (long i = op->y; i < op->y + op->n_out; i++)
        m->acts[i] = 1 / (1 + EXP(-m->acts[i]));
}

static void activations_sigmoid_backward(const op_t *op, const memory_t *m) {
    for (long i = op->y; i < op->y + op->n_out; i++)
        m->deltas[i] *= m->acts[i] * (1 - m->acts[i]);
}

static void activations_tanh_forward(const op_t *op, const memory_t *m) {
    for (long i = op->y; i < op->y + op->n_out; i++)
        m->acts[i] = TANH(m->acts[i]);
}

static void activations_tanh_backward(const op_t *op, const memory_t *m) {
    for (long i = op->y; i < op->y + op->n_out; i++)
        m->deltas[i] *= 1 - m->acts[i] * m->acts[i];
}

static void activations_exp_forward(const op_t *op, const memory_t *m) {
    for (long i = op->y; i < op->y + op->n_out; i++)
        m->acts[i] = EXP(m->acts[i]);
}

static void activations_exp_backward(const op_t *op, const memory_t *m) {
    for (long i = op->y; i < op->y + op->n_out; i++)
        m->deltas[i] *= m->acts[i];
}

static void activations_relu_forward(const op_t *op, const memory_t *m) {
    for (long i = op->y; i < op->y + op->n_out; i++)
        m->acts[i] = m->acts[i] < 0 ? 0 : m->acts[i];
}

static void activations_relu_backward(const op_t *op, const memory_t *m) {
    for (long i = op->y; i < op->y + op->n_out; i++)
        m->deltas[i] = m->acts[i] > 0 ? m->deltas[i] : 0;
}

static void activations_leakyrelu_forward(const op_t *op, const memory_t *m) {
    for (long i = op->y; i < op->y + op->n_out; i++)
        m->acts[i] *= m->acts[i] > 0 ? 1 : (real)op->a[0];
}

static void activations_leakyrelu_backward(const op_t *op, const memory_t *m) {
    for (long i = op->y; i < op->y + op->n_out; i++)
        m->deltas[i] *= m->acts[i] > 0 ? 1 : (real)op->a[0];
}

static void activations_step_forward(const op_t *op, const memory_t *m) {
    for (long i = op->y; i < op->y + op->n_out; i++)
        m->acts[i] = m->acts[i] > 0 ? 1 : 0;
}

/* a: classes */
static void activations_softmax_forward(const op_t *op, const memory_t *m) {
    const long n = (long)op->a[0];
    for (real *y = m->acts + op->y; y < m->acts + op->y + op->n_out; y += n) {
        real most = y[0], total = 0;
        for (long j = 0; j < n; j++)
            most = y[j] > most ? y[j] : most;
        for (long j = 0; j < n; j++)
            total += y[j] = EXP(y[j] - most);
        for (long j = 0; j < n; j++)
            y[j] /= total;
    }
}

static void activations_softmax_backward(const op_t *op, const memory_t *m) {
    const long n = (long)op->a[0];
    for (long i = op->y; i < op->y + op->n_out; i += n) {
        real mean = 0;
        for (long j = i; j < i + n; j++)
            mean += m->acts[j] * m->deltas[j];
        for (long j = i; j < i + n; j++)
            m->deltas[j] = m->acts[j] * (m->deltas[j] - mean);
    }
}

/* a: scale offset */
static void rescale_forward(const op_t *op, const memory_t *m) {
    for (long i = op->y; i < op->y + op->n_out; i++)
        m->acts[i] = m->acts[i] * (real)op->a[0] + (real)op->a[1];
}

static void rescale_backward(const op_t *op, const memory_t *m) {
    for (long i = op->y; i < op->y + op->n_out; i++)
        m->deltas[i] *= (real)op->a[0];
}

/* a: rate scale */
static void dropout_mean_forward(const op_t *op, const memory_t *m) {
    for (long i = op->y; i < op->y + op->n_out; i++)
        m->acts[i] *= (real)op->a[1];
}

static void dropout_mean_backward(const op_t *op, const memory_t *m) {
    for (long i = op->y; i < op->y + op->n_out; i++)
        m->deltas[i] *= (real)op->a[1];
}

/* a: channels */
static void standardize_forward(const op_t *op, const memory_t *m) {
    const long channels = count(op->a[0]);
    const real *mean = m->params + op->buffers;
    for (long p = 0; p < op->n_out; p++)
        m->acts[op->y + p] =
            (m->acts[op->y + p] - mean[p % channels]) / mean[channels + p % channels];
}

static void standardize_backward(const op_t *op, const memory_t *m) {
    const long channels = count(op->a[0]);
    for (long p = 0; p < op->n_out; p++)
        m->deltas[op->y + p] /= m->params[op->buffers + channels + p % channels];
}

static void standardize_unscale(const op_t *op, const memory_t *m) {
    const long channels = count(op->a[0]);
    const real *mean = m->params + op->buffers;
    for (long p = 0; p < op->n_out; p++)
        m->acts[op->y + p] =
            mean[p % channels] + mean[channels + p % channels] * m->acts[op->y + p];
}

static void standardize_unscale_backward(const op_t *op, const memory_t *m) {
    const long channels = count(op->a[0]);
    for (long p = 0; p < op->n_out; p++)
        m->deltas[op->y + p] *= m->params[op->buffers + channels + p % channels];
}

static void builtin_ops_copy_forward(const op_t *op, const memory_t *m) {
    for (long i = 0; i < op->n_in; i++)
        m->acts[op->y + i] = m->acts[op->x + i];
}

static void builtin_ops_copy_backward(const op_t *op, const memory_t *m) {
    for (long i = 0; i < op->n_in; i++)
        m->deltas[op->x + i] = m->deltas[op->y + i];
}
