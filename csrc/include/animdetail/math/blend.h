#pragma once

#include "animdetail/host_device.h"

namespace animdetail::blend {

// Two products and a sum, each rounded: the same bits as the expression in torch. Keep contraction off.
ANIMDETAIL_HD float alpha_over(float below, float above, float alpha) { return (1.0f - alpha) * below + alpha * above; }

}  // namespace animdetail::blend
