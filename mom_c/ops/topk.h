/* Indices of the K largest of a few scores, in falling order.
 *
 * Just after initialisation scores lie so close together that exact ties between float32 numbers occur in every batch. Which
 * of two equal scores is kept then depends on the selection algorithm. torch.topk selects among few scores with
 * std::nth_element and std::sort of the GNU C++ library. To reproduce recorded runs, up to MOM_TOPK_EXACT scores are
 * selected here with the same steps. With more scores, ties go to the lower index. NaN counts as larger than every
 * number. The indices are always distinct.
 */
#ifndef MOM_OPS_TOPK_H
#define MOM_OPS_TOPK_H

#include <stddef.h>
#include <stdint.h>

#define MOM_TOPK_EXACT 64

/* index (K); scores (S); K <= S <= INT16_MAX. */
void mom_topk(int16_t *index, const float *scores, size_t S, size_t K);

#endif
