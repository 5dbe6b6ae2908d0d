/* AdamW with 8-bit moments (Dettmers et al. 2022; bitsandbytes.optim.AdamW8bit). Per block of 256 elements of a tensor:
 *     m = map[code] * scale, v likewise;  the update of ref_dense.c in fp32;  scale' = max |m|, max v;
 *     code' = number of midpoints between neighbours of the map strictly below m / scale'
 * So a tie goes to the lower code; a scale' of 0 divides by 1, and a quotient that is no number counts as 1. Nearest in
 * the map is what the paper, the CUDA kernels and the portable ones compute. The CPU library of bitsandbytes 0.50 snaps
 * the quotient to a grid of 65536 points first, none of which is 0: there a mean square below 1.5e-5 of its block's
 * largest becomes 1.5e-5 of it. */
#include "kernels/ref/ref.h"

/* create_dynamic_map(signed=False, max_exponent_bits=7, total_bits=8); the decimals give the fp32 values exactly. */
const float adamw8_map[256] = {
    0.00000000f,     3.2500003e-07f,  7.7499999e-07f,  2.12499981e-06f,
    4.37499966e-06f, 6.62499997e-06f, 8.87499937e-06f, 1.56249989e-05f,
    2.68750009e-05f, 3.81249993e-05f, 4.93749976e-05f, 6.06250032e-05f,
    7.18750016e-05f, 8.31249927e-05f, 9.43749983e-05f, 0.000128125001f,
    0.000184375007f, 0.000240625013f, 0.00029687502f,  0.000353124982f,
    0.000409375032f, 0.000465625024f, 0.000521875045f, 0.000578125007f,
    0.000634375028f, 0.000690625049f, 0.000746875012f, 0.000803125091f,
    0.000859375054f, 0.000915625016f, 0.000971875037f, 0.00114062498f,
    0.00142187497f,  0.00170312496f,  0.00198437506f,  0.00226562493f,
    0.00254687481f,  0.00282812491f,  0.00310937478f,  0.00339062512f,
    0.00367187499f,  0.00395312486f,  0.0042343745f,   0.00451562507f,
    0.00479687471f,  0.00507812481f,  0.00535937492f,  0.00564062456f,
    0.00592187513f,  0.00620312477f,  0.00648437487f,  0.00676562544f,
    0.00704687461f,  0.00732812518f,  0.00760937436f,  0.00789062493f,
    0.00817187503f,  0.0084531242f,   0.00873437524f,  0.00901562441f,
    0.00929687452f,  0.00957812555f,  0.00985937472f,  0.010703126f,
    0.0121093756f,   0.0135156242f,   0.0149218757f,   0.0163281243f,
    0.0177343767f,   0.0191406254f,   0.020546874f,    0.0219531264f,
    0.0233593751f,   0.0247656237f,   0.0261718761f,   0.0275781285f,
    0.0289843734f,   0.0303906258f,   0.0317968726f,   0.033203125f,
    0.0346093737f,   0.036015626f,    0.0374218784f,   0.0388281234f,
    0.0402343757f,   0.0416406244f,   0.0430468731f,   0.0444531254f,
    0.0458593741f,   0.0472656265f,   0.0486718714f,   0.0500781238f,
    0.0514843725f,   0.0528906249f,   0.0542968772f,   0.0557031296f,
    0.057109382f,    0.0585156269f,   0.0599218719f,   0.0613281243f,
    0.0627343804f,   0.0641406327f,   0.0655468777f,   0.0669531226f,
    0.068359375f,    0.0697656274f,   0.0711718798f,   0.0725781247f,
    0.0739843771f,   0.0753906295f,   0.0767968819f,   0.0782031268f,
    0.0796093792f,   0.0810156241f,   0.0824218765f,   0.0838281289f,
    0.0852343738f,   0.0866406262f,   0.0880468711f,   0.0894531235f,
    0.0908593759f,   0.0922656283f,   0.0936718807f,   0.0950781256f,
    0.096484378f,    0.0978906304f,   0.0992968753f,   0.103515625f,
    0.110546872f,    0.117578126f,    0.124609374f,    0.131640613f,
    0.138671875f,    0.145703137f,    0.152734369f,    0.159765631f,
    0.166796863f,    0.173828125f,    0.180859387f,    0.187890619f,
    0.194921881f,    0.201953113f,    0.208984375f,    0.216015637f,
    0.223046869f,    0.230078131f,    0.237109363f,    0.244140625f,
    0.251171857f,    0.258203119f,    0.265234381f,    0.272265613f,
    0.279296875f,    0.286328137f,    0.293359369f,    0.300390601f,
    0.307421863f,    0.314453125f,    0.321484387f,    0.328515619f,
    0.335546851f,    0.342578113f,    0.349609375f,    0.356640637f,
    0.363671869f,    0.370703101f,    0.377734363f,    0.384765625f,
    0.391796887f,    0.398828119f,    0.405859351f,    0.412890613f,
    0.419921875f,    0.426953137f,    0.433984369f,    0.441015601f,
    0.448046863f,    0.455078125f,    0.462109387f,    0.469140619f,
    0.476171851f,    0.483203113f,    0.490234375f,    0.497265607f,
    0.504296899f,    0.511328101f,    0.518359363f,    0.525390625f,
    0.532421827f,    0.539453149f,    0.546484351f,    0.553515673f,
    0.560546875f,    0.567578137f,    0.574609399f,    0.581640601f,
    0.588671923f,    0.595703125f,    0.602734387f,    0.609765649f,
    0.616796851f,    0.623828173f,    0.630859375f,    0.637890637f,
    0.644921899f,    0.651953101f,    0.658984423f,    0.666015625f,
    0.673046887f,    0.680078149f,    0.687109351f,    0.694140673f,
    0.701171875f,    0.708203137f,    0.715234399f,    0.722265601f,
    0.729296923f,    0.736328125f,    0.743359387f,    0.750390649f,
    0.757421851f,    0.764453173f,    0.771484375f,    0.778515577f,
    0.785546899f,    0.792578101f,    0.799609423f,    0.806640625f,
    0.813671827f,    0.820703149f,    0.827734351f,    0.834765673f,
    0.841796875f,    0.848828077f,    0.855859399f,    0.862890601f,
    0.869921923f,    0.876953125f,    0.883984327f,    0.891015649f,
    0.898046851f,    0.905078173f,    0.912109375f,    0.919140577f,
    0.926171899f,    0.933203101f,    0.940234423f,    0.947265625f,
    0.954296827f,    0.961328149f,    0.968359351f,    0.975390673f,
    0.982421875f,    0.989453077f,    0.996484399f,    1.0f,
};

static uint8_t nearest(const float *map, float x) {
    int lo = 0, hi = 255; /* the number of midpoints below x lies in [lo, hi] */
    while (lo < hi) {
        int at = (lo + hi) / 2;
        if ((map[at] + map[at + 1]) / 2 < x)
            lo = at + 1;
        else
            hi = at;
    }
    return (uint8_t)lo;
}

/* x [n] into codes; returns the scale */
static float quantise(const float *map, const float *x, int64_t n, uint8_t *code) {
    float top = 0;
    for (int64_t i = 0; i < n; i++) top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    const float divisor = top > 0 ? top : 1;
    for (int64_t i = 0; i < n; i++) {
        float r = x[i] / divisor;
        code[i] = nearest(map, r < 1 ? r : 1);
    }
    return top;
}

void adamw_8bit_ref(kctx *c, float *p, const float *g, const adamw8 *s, const adamw_hp *hp) {
    if (hp->sums->nonfinite) return;
    for (int64_t t = 0; t < s->tensors; t++)
        for (int64_t at = 0; at < s->tensor[t].n; at += ADAMW8_BLOCK) {
            float m[ADAMW8_BLOCK], v[ADAMW8_BLOCK];
            const int64_t left = s->tensor[t].n - at, n = left < ADAMW8_BLOCK ? left : ADAMW8_BLOCK;
            const int64_t from = s->tensor[t].begin + at, block = s->tensor[t].block + at / ADAMW8_BLOCK;
            uint8_t *mc = s->m + s->tensor[t].code + at, *vc = s->v + s->tensor[t].code + at;
            for (int64_t i = 0; i < n; i++) {
                m[i] = nf4_dynamic_map[mc[i]] * s->m_scale[block];
                v[i] = adamw8_map[vc[i]] * s->v_scale[block];
            }
            adamw_ref(c, p + from, g + from, m, v, n, hp);
            s->m_scale[block] = quantise(nf4_dynamic_map, m, n, mc);
            s->v_scale[block] = quantise(adamw8_map, v, n, vc);
        }
}
